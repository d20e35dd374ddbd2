"""`cdc/requery`."""
