"""A pair of servers with one slot: decides which one leads, and keeps the other one's copy of the map."""
