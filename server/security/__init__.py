"""TLS, tokens, and the files from which they are read."""
