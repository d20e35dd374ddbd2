"""The service around `cdc`: settings, gRPC, HTTP, commands."""

import os

# gRPC's core reads this when it is loaded, so it is set before anything of ours loads it. Otherwise each
# stranger whose handshake fails writes a line past our logs. GRPC_VERBOSITY=INFO brings those back.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
