"""The server, its edges included."""
