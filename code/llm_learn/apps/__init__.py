"""Applications built from the library: training and pipeline commands, a serving engine, an HTTP server."""
