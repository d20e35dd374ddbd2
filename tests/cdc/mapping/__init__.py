"""`cdc/mapping`."""
