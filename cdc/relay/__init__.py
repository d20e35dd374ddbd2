"""The map on its way to relays: pages of changes, who makes them and who reads them. Nothing here knows a
broker.
"""
