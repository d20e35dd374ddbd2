"""Metrics, health, logs and pages. All of it listens to the domain, which does not know it."""
