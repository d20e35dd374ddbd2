"""Registers the fixtures; they live in small plugins, one a subject."""

pytest_plugins = [
    "tests.fix_postgres",
    "tests.fix_server",
    "tests.fix_feed",
    "tests.fix_check",
    "tests.fix_prometheus",
    "tests.fix_chromium",
    "tests.fix_pgbouncer",
]
