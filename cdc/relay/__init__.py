"""Cuts the map and its changes into pages for relays, and puts pages together again. Nothing here knows a
broker.
"""
