"""Transport between a leader and its relays over NATS JetStream. `cdc.relay` makes and reads the pages."""
