"""The command `python -m llm_learn.train`."""

import sys

from llm_learn.apps.train_command import main

sys.exit(main())
