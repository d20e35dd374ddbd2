"""`server/commands`."""
