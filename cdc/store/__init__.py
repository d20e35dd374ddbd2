"""The map of endpoints, walked by revision."""
