"""`server/rpc`."""
