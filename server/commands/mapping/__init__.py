"""``pads-cdc mapping``: write a mapping of one's own, and test it."""
