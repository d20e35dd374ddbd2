"""How we talk to Postgres: connections, reads with their evidence, errors, timelines."""
