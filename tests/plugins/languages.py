"""Servers that speak German or French: what they say is read by its code, never by its words."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Protocol

import pytest

from server.commands.demo.programs import find_programs
from tests.support import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.plugins.postgres import ClusterFactory
    from tests.support.cluster import Cluster

LANGUAGES = {"de": "de_DE.UTF-8", "fr": "fr_FR.UTF-8"}


class SpeakingFactory(Protocol):
    """Makes a cluster that speaks a language (``de`` or ``fr``)."""

    def __call__(self, language: str, settings: Mapping[str, str] | None = None) -> Cluster: ...


@pytest.fixture(scope="session")
def locales() -> str:
    """The folder that has the locales; a failure is no skip."""
    made = subprocess.run(
        [ROOT / "scripts/fetch-locales"], cwd=ROOT, check=False, capture_output=True, text=True
    )
    if made.returncode != 0:
        pytest.fail(f"scripts/fetch-locales: {made.stderr.strip()}")
    return made.stdout.strip()


@pytest.fixture
def speaking(
    locales: str, cluster_factory: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> SpeakingFactory:
    """Clusters of the installed server: those that are fetched for the tests have no translations."""
    monkeypatch.delenv("PADS_PG_BIN", raising=False)
    monkeypatch.setenv("LOCPATH", locales)
    programs = find_programs()

    def make(language: str, settings: Mapping[str, str] | None = None) -> Cluster:
        return cluster_factory({"lc_messages": LANGUAGES[language], **(settings or {})}, programs=programs)

    return make
