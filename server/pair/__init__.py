"""The peer's map, over gRPC: sending ours, and following the peer's."""
