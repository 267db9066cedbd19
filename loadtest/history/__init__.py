"""What happened in a run: one line of JSON a request, and how that is read again without holding it in memory."""
