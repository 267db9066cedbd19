"""The writing side: commands through SQLAlchemy to the primary. Imports nothing of `atelier.reads`."""
