"""The service around `cdc`: settings, gRPC, HTTP, commands."""

import os

# gRPC's core reads this variable when it is loaded, so it is set before any of our modules loads gRPC.
# Otherwise gRPC writes its own line for each failed handshake, outside of our logs. GRPC_VERBOSITY=INFO shows
# these lines.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
