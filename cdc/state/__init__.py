"""The state file, which keeps revisions, positions and tombstones across restarts; and resume tokens."""
