"""`cdc/postgres`."""
