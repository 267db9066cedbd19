"""The write-concurrency lab: load, faults, and a verdict that can be trusted. It imports nothing of the service."""
