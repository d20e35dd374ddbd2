"""`server/security`."""
