"""Sends this server's map to its peer, and follows the peer's map, over gRPC."""
