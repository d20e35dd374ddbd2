"""`cdc/pair`."""
