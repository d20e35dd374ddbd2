"""What `pads-cdc demo` runs on: an ephemeral Postgres cluster, a workload, and a live view."""
