"""``pads-cdc mapping``: writes a mapping to start from, and tests a mapping."""
