"""Executes the published notebooks again, in a clean environment without a network, and compares."""
