"""Registers the fixtures; they live in small plugins, one a subject."""

import signal

signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, and all programs that we start would, too

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
