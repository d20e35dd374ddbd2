"""Metrics, health, logs and pages. They receive the reports of `cdc`, which does not import them."""
