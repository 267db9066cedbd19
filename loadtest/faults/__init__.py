"""What is done to a service while it works, and when."""
