"""The authorization check that the documents show does what gateways do."""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, Any

import pytest
from pads_cdc_client import EndpointFeed

from tests.plugins.server import DEADLINE, fill
from tests.support import ROOT

if TYPE_CHECKING:
    from tests.plugins.feed import FeedFactory
    from tests.plugins.postgres import Database
    from tests.plugins.server import ServerFactory


@pytest.mark.parametrize("page", ["README.md", "docs/feed.md"])
def test_the_check_in_the_documents(
    database: Database, serve: ServerFactory, feed: FeedFactory, page: str
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    [block] = [block for block in blocks if "def authorize" in block]
    names: dict[str, Any] = {"hmac": hmac, "EndpointFeed": EndpointFeed, "hostname": "gateway"}
    exec(compile(block, page, "exec"), names)  # noqa: S102 (our own page)
    authorize = names["authorize"]
    assert authorize("app_1", "key_1", None) == 503
    fill(database, 10)  # app_1 needs its key, app_3 none, app_7 has no settings
    names["feed"] = client = feed(serve(database))
    assert client.wait_ready(DEADLINE)
    assert [authorize("app_1", key, None) for key in ("key_1", "key_2", "")] == [200, 401, 401]
    assert authorize("app_3", "", None) == authorize("app_7", "", None) == 200
    assert authorize("app_11", "", None) == 404
