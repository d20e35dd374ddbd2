"""Through the real Envoy, with the configuration that deploy/envoy has."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest

from authz.identity import Places, Unidentified, identify
from tests.plugins.authorizer import rows
from tests.plugins.envoy import start_envoy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.plugins.authorizer import Authorizer, Row
    from tests.plugins.envoy import Gateway

OURS = {"portal-application-id", "portal-account-id", "rl-endpoint-id", "rl-throughput"}


@pytest.fixture(scope="module")
def gateway(table_authorizer: Authorizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """An Envoy before the authorizer that holds the table's endpoints."""
    with ExitStack() as running:
        yield start_envoy(running, tmp_path_factory.mktemp("envoy"), table_authorizer.grpc)


@pytest.mark.parametrize("row", [row for row in rows() if row.raw], ids=lambda row: row.what)
def test_every_request_gets_its_answer_through_envoy(row: Row, gateway: Gateway) -> None:
    reply = gateway.get(row.path, row.headers)
    assert reply.code == row.envoy, reply
    if reply.code == 200 and row.to is not None:
        ours = [(name, value) for name, value in reply.upstream if name in OURS]
        assert sorted(ours) == sorted((name.lower(), value) for name, value in row.upstream.items())
        assert not [name for name, _ in reply.upstream if name in ("authorization", "jwt-user-id")]
        assert identify(reply.path, [], Places()) in (row.to, Unidentified.MISSING), reply.path
