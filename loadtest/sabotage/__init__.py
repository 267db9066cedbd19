"""Breaks on purpose what the service promises, outside of it, so that the checkers can be seen to catch it."""
