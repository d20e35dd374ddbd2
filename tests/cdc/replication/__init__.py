"""`cdc/replication`."""
