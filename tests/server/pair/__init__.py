"""`server/pair`."""
