"""Small programs for those who develop the project."""
