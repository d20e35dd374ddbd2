"""Follow one logical replication slot, and keep every gateway endpoint exact.

The way of the data, each step with its package:

1. `replication` reads the slot, decodes it, and assembles committed transactions.
2. `mapping` says which endpoints the rows of a transaction affect.
3. `replication` hands the transactions over through a bounded backlog; `applier` takes them from there.
4. `requery` makes tasks of them, and reads the affected endpoints when a read can count.
5. `postgres` reads rows together with evidence of the snapshot, and judges whether that snapshot sees the
   transactions.
6. `state` writes the changes to the state file.
7. `store` publishes them, and subscribers walk its log; `server.rpc` sends them on.
8. `requery` decides when the map is consistent, so that a resume token (`state`) may stand for it.
9. `pair` keeps a second server's copy up to date, and says how far that one has come.
10. `applier` then lets `replication` confirm the slot up to there; `relay` carries the map to relays.

Nothing here imports grpc, generated stubs or prometheus: `server` imports this package, never the reverse.
"""
