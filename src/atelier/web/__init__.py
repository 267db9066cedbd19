"""What is true of every request and answer of the service, whichever side and route it is for."""
