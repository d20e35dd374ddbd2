"""Follow one logical replication slot and keep every gateway endpoint exact.

The way of the data, one module a step::

    slot ─> wal2json ─> assembler ─> affected ─> gate + database ─> store ─> subscribers
                                                                      └─> state_file ─> ack the slot

Nothing here imports grpc, generated stubs or prometheus: `server` wraps this package, never the reverse.
"""
