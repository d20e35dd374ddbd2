"""Registers the fixtures; they live in small plugins, one a subject."""

pytest_plugins = [
    "tests.plugins.decoding",
    "tests.plugins.postgres",
    "tests.plugins.server",
    "tests.plugins.feed",
    "tests.plugins.check",
    "tests.plugins.figures",
    "tests.plugins.prometheus",
    "tests.plugins.chromium",
    "tests.plugins.pgbouncer",
    "tests.plugins.nats",
    "tests.plugins.authorizer",
    "tests.plugins.envoy",
    "tests.plugins.languages",
]
