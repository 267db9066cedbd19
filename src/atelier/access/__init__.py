"""Who may do what: API keys and scopes, rate limits, and the audit. Used by both sides, imports neither."""
