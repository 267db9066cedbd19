"""One guarantee each: pure functions from a history to valid, invalid with a witness in words, or unknown."""
