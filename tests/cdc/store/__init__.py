"""`cdc/store`."""
