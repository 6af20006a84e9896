"""The command `python -m llm_learn.pipeline`."""

import sys

from llm_learn.apps.pipeline_command import main

sys.exit(main())
