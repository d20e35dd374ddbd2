"""The screen of `watch`: nothing of what it shows is cut, on terminals of every size."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pads_cdc_client.pb.gateway_endpoint_pb2 import CAPACITY_LIMIT_PERIOD_MONTHLY, GatewayEndpoint
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from server.commands.watch.lines import Line, Lines
from server.commands.watch.screen import Screen, Section
from server.commands.watch.table import TableColumn, TableRow, table

COLUMNS = (TableColumn("at", 8), TableColumn("of", 12, folds=True), TableColumn("number", 7, right=True))


@given(
    st.lists(st.tuples(st.text("aé漢 ", max_size=50), st.text("0123456789,", max_size=9)), max_size=5),
    st.integers(40, 90),
)
def test_no_line_is_wider_than_the_terminal_and_no_letter_is_lost(
    rows: list[tuple[str, str]], width: int
) -> None:
    lines = table(COLUMNS, [TableRow(("12:00:00", text, number)) for text, number in rows], width)
    assert all(cell_len(line.plain) <= width for line in lines)
    shown = re.sub(r"\s", "", "".join(line.plain for line in lines))
    for text, number in rows:
        for letter in re.sub(r"\s", "", text + number):
            assert letter in shown
    assert sum(map(len, (re.sub(r"\s", "", "".join(row)) for row in rows))) + len("atofnumber") + 8 * len(
        rows
    ) == len(shown)


def test_words_take_the_room_of_the_other_columns_and_are_folded() -> None:
    lines = table(COLUMNS, [TableRow(("12:00:00", "a long story " * 5), words=True)], 40)
    assert all(len(line.plain) <= 40 for line in lines)
    assert "".join(line.plain[10:] for line in lines[1:]).split() == ["a", "long", "story"] * 5


class Watched:
    """Has a head, and lines."""

    target = "server.example:10002"

    def __init__(self, head: str) -> None:
        self.lines = Lines(Line("connecting to server.example:10002"))
        self._head = head

    def head(self) -> Text:
        return Text(self._head)

    def read(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (200, 60), (80, 16)])
def test_it_fills_the_terminal_and_no_more(size: tuple[int, int]) -> None:
    width, height = size
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=width, height=height, soft_wrap=True)
    watched = Watched("in sync   " * 12)  # which does not fit into one line
    for number in range(100):
        endpoint = GatewayEndpoint()
        endpoint.rate_limiting.capacity_limit = 2_000_000_000
        endpoint.rate_limiting.capacity_limit_period = CAPACITY_LIMIT_PERIOD_MONTHLY
        endpoint.metadata.plan_type = "PLAN_UNLIMITED"
        watched.lines.add(Line.of_change(f"an_id_of_24_characters_{number:02}", endpoint))
    figures = Section(COLUMNS, [TableRow(("total", "of all", "1,000"))], 0)
    commits = Section(COLUMNS, [TableRow((f"{number} s", "app_1", "7")) for number in range(100)], 2)
    with Screen(console, watched) as screen:
        out.truncate(0)
        screen.draw(Text("and more"), (figures, commits))
        drawn = Text.from_ansi(out.getvalue()).plain.split("\r\n")[-1].splitlines()
    assert len(drawn) == height
    text = "\n".join(line.rstrip() for line in drawn)
    for words in ("in sync", "and more", "Ctrl-C ends it", "total", "0 s", "2,000,000,000/month"):
        assert words in text, text
    assert drawn[-1].strip(), "lines are left empty"
