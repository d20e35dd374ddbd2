"""A pair of servers with one slot: decides which server leads, and keeps the other server's copy of the map.
"""
