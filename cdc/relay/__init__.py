"""Cuts the map and its changes into pages for relays, and puts pages together again. Nothing here depends on
a broker. `pages` defines page, run, generation, line and head.
"""
