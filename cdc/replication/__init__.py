"""The replication slot: reading it, decoding it, and handing whole transactions on."""
