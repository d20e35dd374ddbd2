"""`server/observe`."""
