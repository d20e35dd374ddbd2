"""`cdc/state`."""
