"""Fair scheduling of LLM requests: pure decisions, no I/O, no clock."""
