"""Our models and numbers in other libraries, which chapters compare with."""
