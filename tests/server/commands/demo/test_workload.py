"""The workload on a real database: what it says of a commit is what that commit does."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING

import psycopg2
import pytest

from server.commands.demo import portal as portals
from server.commands.demo.workload import KINDS, Workload

if TYPE_CHECKING:
    from server.commands.demo.portal import Portal
    from tests.plugins.postgres import ClusterFactory


@pytest.fixture
def portal(cluster_factory: ClusterFactory) -> Portal:
    return portals.create(cluster_factory())


def test_commits_do_what_they_are_said_to_do(portal: Portal) -> None:
    with closing(portal.connect()) as session, closing(portal.connect()) as other, other.cursor() as cursor:
        workload = Workload(session, Random(7))  # noqa: S311 - the same each time
        before = portals.endpoints(cursor)
        other.commit()
        assert len(before) == 10_000
        kinds: Counter[str] = Counter()
        while set(kinds) != set(KINDS):  # a plan is changed after some thirty others
            commit = workload.prepare()
            workload.commit()
            after = portals.endpoints(cursor)
            other.commit()
            changed = {
                each: after.get(each) for each in before | after if before.get(each) != after.get(each)
            }
            assert commit.changes == changed, commit
            assert not re.search("[0-9a-f]{32}", repr(commit))
            before = after
            kinds[commit.kind] += 1


def test_the_data_has_every_shape_that_the_mapping_knows(portal: Portal) -> None:
    with closing(portal.connect()) as session, session.cursor() as cursor:
        found = portals.endpoints(cursor).values()
    auth = Counter(endpoint.auth.WhichOneof("auth_type") for endpoint in found)
    assert auth.keys() == {"static_api_key", "no_auth"}
    plans = Counter(endpoint.metadata.plan_type for endpoint in found)
    assert plans.keys() == {"", "free", "starter", "growth", "scale", "unlimited"}
    assert plans["free"] > 3_000
    assert {endpoint.rate_limiting.capacity_limit_period for endpoint in found} == {0, 3}


def test_the_server_s_role_may_replicate_and_read_but_not_write(portal: Portal) -> None:
    with closing(psycopg2.connect(portal.streamer)) as session, session.cursor() as cursor:
        cursor.execute("SELECT rolsuper, rolreplication FROM pg_roles WHERE rolname = current_user")
        assert cursor.fetchall() == [(False, True)]
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            cursor.execute("DELETE FROM pay_plans")
