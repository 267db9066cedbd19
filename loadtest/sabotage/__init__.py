"""Breaks on purpose what the service promises, around it or in it, so that the checkers can be seen to catch it."""
