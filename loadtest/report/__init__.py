"""What a run showed, for people (one HTML file), for programs (summary.json) and for terminals (one line)."""
