"""The write-concurrency lab: load, faults, and a verdict that can be trusted. A client: imports nothing of the service."""
