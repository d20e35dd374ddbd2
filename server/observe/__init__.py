"""Metrics, health, logs and pages. They listen to the domain, which does not know them."""
