"""Who counts as a synchronous standby, held against Postgres itself."""

from __future__ import annotations

import json
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import psycopg2
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg2.extras import LogicalReplicationConnection

from cdc.replication.synchronous_standby import Sender, chosen, names, refusal
from tests.plugins.server import wait_until
from tests.support.cluster import ephemeral_cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.cluster import Cluster


OURS = "pads-cdc"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("", ()),
        ("*", ("*",)),
        ("a, b", ("a", "b")),
        ("2 (a, b)", ("a", "b")),
        ("FIRST 1 (*)", ("*",)),
        ("any 2(a,b ,c)", ("a", "b", "c")),
        ('"pads-cdc"', ("pads-cdc",)),
        ('ANY 1 ("say ""hi""", "(", "a,b")', ('say "hi"', "(", "a,b")),
        ("3, 4", ("3", "4")),
        ('"FIRST", first_1', ("FIRST", "first_1")),
    ],
)
def test_the_names_of_a_setting(setting: str, expected: tuple[str, ...]) -> None:
    assert names(setting) == expected


def test_a_name_of_ours_in_any_case_is_refused_with_what_to_type() -> None:
    text = refusal(Sender(1, OURS, 'FIRST 1 ("PADS-CDC")'))
    assert text is not None
    assert "name the physical standbys in it, and only them" in text
    assert refusal(Sender(1, OURS, "FIRST 1 (pads, cdc)")) is None
    assert refusal(Sender(1, OURS, "")) is None


@pytest.fixture(scope="module")
def sending() -> Iterator[Cluster]:
    """A server with a wal sender of our name that has reported a flush position, and so may count."""
    with ephemeral_cluster() as cluster:
        url = cluster.url()
        with closing(
            psycopg2.connect(url, connection_factory=LogicalReplicationConnection, application_name=OURS)
        ) as connection:
            cursor = connection.cursor()
            cursor.execute("CREATE_REPLICATION_SLOT counting TEMPORARY LOGICAL wal2json")
            cursor.start_replication(slot_name="counting", status_interval=1_000_000)
            cursor.send_feedback(flush_lsn=1, force=True)
            yield cluster


_PLAIN = st.sampled_from(["a", "pads_cdc", "PADS", "x1", "7", "_y", "na\u00efve"])
_QUOTED = st.sampled_from(
    [OURS, OURS.upper(), "pads-cdc ", "pads", "*", "(", 'a"b', "a, b", "FIRST", "\u00e4"]
)
_NAMES = st.lists(
    st.one_of(_PLAIN, st.just("*"), _QUOTED.map(lambda name: '"{}"'.format(name.replace('"', '""')))),
    min_size=1,
    max_size=3,
)
_SHAPES = st.sampled_from(["{}", "1 ({})", "FIRST 1 ({})", "any 1 ( {} )", "ANY 2({})"])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_NAMES, _SHAPES)
@example(["*"], "FIRST 1 ({})")
@example([f'"{OURS.upper()}"'], "ANY 1 ({})")
@example(["a", '"*"'], "{}")
def test_postgres_chooses_whom_we_say_it_chooses(sending: Cluster, listed: list[str], shape: str) -> None:
    setting = shape.format(", ".join(listed))
    expected = chosen(setting, OURS)
    # From the opposite, so that what is found is the setting's doing.
    for value, priority in (("" if expected else "*", not expected), (setting, expected)):
        sending.configure({"synchronous_standby_names": value})
        sending.reload()
        wait_until(partial(_counts, sending, priority), json.dumps([value, priority]), 5)


def _counts(cluster: Cluster, expected: bool) -> bool:
    with closing(psycopg2.connect(cluster.url())) as session, session.cursor() as cursor:
        cursor.execute("SELECT sync_priority > 0 FROM pg_stat_replication")
        [(counts,)] = cursor.fetchall()
        return bool(counts == expected)
