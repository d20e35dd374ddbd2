"""`server/broker`."""
