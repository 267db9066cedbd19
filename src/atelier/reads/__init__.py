"""The reading side: from a request to bytes, by way of a replica that may answer it. Imports nothing of `writes`."""
