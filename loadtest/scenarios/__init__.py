"""What can be run, by name."""
