"""The table of requests and answers, asked of both servers as black boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.plugins.authorizer import parsed, rows

if TYPE_CHECKING:
    from tests.plugins.authorizer import Checks, Row


@pytest.mark.parametrize("row", list(rows()), ids=lambda row: f"{row.what} [{'raw' if row.raw else 'map'}]")
def test_every_request_gets_its_answer(row: Row, checks: Checks) -> None:
    answer = checks(row.path, row.headers, raw=row.raw)
    assert answer.code == row.code
    if row.code != 200:
        said = parsed(answer)
        assert said.pop("message")
        assert said == {"code": row.code}
        assert answer.downstream["content-type"] == "application/json"
        assert not answer.upstream
        return
    assert answer.upstream == row.upstream
    ours = {"portal-application-id", "portal-account-id", "rl-endpoint-id", "rl-throughput"}
    assert answer.removed == (ours - {name.lower() for name in answer.upstream}) | {"authorization"}
    assert answer.metadata["endpoint_id"] == row.to
    assert ("rate_limit" in answer.metadata) == ("Rl-Throughput" in row.upstream)


def test_the_table_is_large_enough() -> None:
    assert len({row.what for row in rows()}) >= 60
