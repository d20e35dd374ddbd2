"""Tests of what is deployed beside the program: alerts, dashboard, image, chart."""
