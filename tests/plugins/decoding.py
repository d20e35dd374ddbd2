"""Which of the two plugins a test's slots are read with: a parameter of the whole test.

`make test` runs what is marked ``both_plugins`` with each of them, and all else with wal2json; with
``--decode-with=both``, as in `make test-all`, every test that reads a slot runs with each. The mark
``both_plugins(quick=False)`` leaves the second run of a slow test for `make test-all` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest

from cdc.replication import pgoutput, wal2json
from cdc.replication.own_slot import PLUGINS

if TYPE_CHECKING:
    from collections.abc import Collection

_READERS: Final = {"serve", "follow"}
"""Fixtures that read a slot."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--decode-with", choices=[*PLUGINS, "both"], help="with which plugin tests that read slots run"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once for each plugin that it is for."""
    if "plugin" in metafunc.fixturenames:
        chosen = _chosen(metafunc)
        if len(chosen) > 1:
            metafunc.parametrize("plugin", chosen, indirect=True)


def _chosen(metafunc: pytest.Metafunc) -> Collection[str]:
    only = metafunc.definition.get_closest_marker("only_with")
    if only is not None:
        return only.args
    mark = metafunc.definition.get_closest_marker("both_plugins")
    marked = mark is not None and mark.kwargs.get("quick", True)
    option = metafunc.config.getoption("--decode-with")
    reads = not _READERS.isdisjoint(metafunc.fixturenames)
    if option is None:
        return PLUGINS if marked else PLUGINS[:1]
    return PLUGINS if option == "both" and (marked or reads) else [PLUGINS[0] if option == "both" else option]


@pytest.fixture
def plugin(request: pytest.FixtureRequest) -> str:
    """The plugin that this test's slots are read with."""
    only = request.node.get_closest_marker("only_with")
    option = request.config.getoption("--decode-with")
    default = only.args[0] if only is not None else option if option in PLUGINS else PLUGINS[0]
    return str(getattr(request, "param", default))


def plugin_settings(plugin: str) -> dict[str, str]:
    """Return the settings that have a server read with a plugin; `auto` finds wal2json by itself."""
    return {} if plugin == wal2json.NAME else {"PLUGIN": plugin}


def stream_options(plugin: str) -> dict[str, str]:
    """Return what whoever else reads our slot has to ask for."""
    return {} if plugin == wal2json.NAME else pgoutput.options("pads_cdc")
