"""Follow one logical replication slot, and keep every gateway endpoint exact.

The path of the data, step by step, with the package of each step:

1. `replication` reads the slot, decodes it, and assembles committed transactions.
2. `mapping` finds the endpoints that the rows of a transaction affect.
3. `replication` puts the transactions into a bounded backlog, and `applier` takes them out.
4. `requery` makes tasks of them, and reads the affected endpoints.
5. `postgres` reads rows together with evidence of the snapshot, and judges whether that snapshot includes the
   transactions. If it does not, the rows are read again.
6. `state` writes the changes to the state file.
7. `store` publishes the changes in its log. Subscribers read the log, and `server.rpc` sends it to gateways.
8. `requery` decides when the map is consistent. Only then does `state` issue a resume token for it.
9. `pair` keeps a second server's copy up to date, and reports the position that the copy has reached.
10. `applier` lets `replication` confirm the slot up to that position; `relay` carries the map to relays.

Nothing here imports grpc, generated stubs or prometheus: `server` imports this package, never the reverse.
"""
