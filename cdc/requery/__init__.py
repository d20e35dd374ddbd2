"""Reading endpoints again: what is due, which read counts, and the audit of everything."""
