"""Registers the fixtures; they live in small plugins, one a subject."""

pytest_plugins = ["tests.fix_postgres", "tests.fix_server", "tests.fix_prometheus"]
