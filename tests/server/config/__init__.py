"""`server/config`."""
