"""One guarantee each: pure functions from a history to valid, invalid with the smallest witness in words, or unknown."""
