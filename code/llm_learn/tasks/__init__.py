"""Small tasks and their data, which several chapters share."""
