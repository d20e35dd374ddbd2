"""Cuts the map and its changes into pages for relays, and makes a map from pages. Nothing here depends on a
broker. `pages` defines the terms page, run, generation, line and head.
"""
