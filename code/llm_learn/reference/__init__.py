"""Our models and losses in other libraries, with which chapters compare them."""
