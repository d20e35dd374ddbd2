"""`cdc/checks`."""
