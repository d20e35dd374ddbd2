"""Access to Postgres: connections, reads with their evidence, the gate, timelines, errors."""
