"""Executes the published notebooks once more, in a clean environment without a network, and compares."""
