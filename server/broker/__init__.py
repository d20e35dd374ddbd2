"""NATS JetStream between a leader and its relays. What travels is `cdc.relay`'s; here it is carried."""
