"""The command `python -m llm_learn.pipeline`, whose parts are in `llm_learn.apps`."""
