"""Data synthesis after the paper: personas, queries, a response per level, cleaned records."""
