"""The whole server, as its clients see it."""
