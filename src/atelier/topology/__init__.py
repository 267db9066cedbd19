"""Who is primary and who has replayed what: observed, never configured. Used by both sides."""
