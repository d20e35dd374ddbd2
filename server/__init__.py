"""The service around `cdc`: settings, gRPC, HTTP, commands."""

import os

# gRPC's core reads this variable when it is loaded, so it is set before any of our modules loads gRPC.
# Otherwise gRPC writes a line past our logs for each failed handshake. GRPC_VERBOSITY=INFO brings these back.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
