"""Two servers for one slot: which of them leads, and the copy that the other one holds."""
