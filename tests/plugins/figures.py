"""Figures that a test measures: printed at the end of the run, for docs/operate.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import pytest

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

_FIGURES = pytest.StashKey[list[str]]()


class Figure(Protocol):
    """Notes one line, such as ``"100,000 transactions: 31 MiB"``."""

    def __call__(self, line: str, /) -> None: ...


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Figure:
    """Note what was measured."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter: TerminalReporter, config: pytest.Config) -> None:
    """Print all of them."""
    if figures := config.stash.get(_FIGURES, []):
        terminalreporter.section("measured")
        for line in figures:
            terminalreporter.write_line(line)
