"""The `atelier` command. Each module registers its commands on the group that `main` makes."""
