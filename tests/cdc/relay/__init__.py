"""`cdc/relay`."""
