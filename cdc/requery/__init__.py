"""Reads affected endpoints again, decides whether the map is consistent, and audits it."""
