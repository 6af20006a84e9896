"""Programs that put the library together: training and pipeline commands, a serving engine and its server."""
