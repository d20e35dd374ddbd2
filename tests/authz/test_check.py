"""Who may pass, beyond what a database can hold: the table has the rest."""

from __future__ import annotations

import pytest
from envoy.service.auth.v3.external_auth_pb2 import CheckResponse
from pads_cdc_client.pb.gateway_endpoint_pb2 import Auth, GatewayEndpoint

from authz.answer import Answers
from authz.check import ANSWERS, Outcome, Requirement
from authz.config import UpstreamHeaders
from tests.plugins.authorizer import read


def test_an_endpoint_without_any_kind_of_authorization_lets_nobody_in() -> None:
    assert not Requirement.of(Auth()).met_by([b"key"], [b"subject"])


def test_an_empty_subject_is_nobody_even_where_it_is_listed() -> None:
    auth = Auth()
    auth.jwt.authorized_users[""].SetInParent()
    assert not Requirement.of(auth).met_by([], [b""])


def test_an_empty_key_authorizes_nobody() -> None:
    auth = Auth()
    auth.static_api_key.SetInParent()
    assert not any(Requirement.of(auth).met_by([shown], []) for shown in (b"", b"Bearer ", b"bearer ", b"x"))


@pytest.mark.parametrize("outcome", ANSWERS)
def test_every_refusal_is_one(outcome: Outcome) -> None:
    answers = Answers(UpstreamHeaders(), None)
    answer = read(CheckResponse.FromString(answers.refused(outcome)))
    assert answer.code == ANSWERS[outcome][0] != 200
    assert answer.metadata == {"outcome": outcome.value}


def test_every_outcome_but_one_has_a_refusal() -> None:
    assert set(Outcome) - set(ANSWERS) == {Outcome.ALLOWED}


def test_headers_that_are_not_wanted_are_left_out_and_never_removed_twice() -> None:
    upstream = UpstreamHeaders(
        endpoint="endpoint-id", account=None, limited=None, throughput=None, remove_authorization=False
    )
    prepared = Answers(upstream, None).prepared(GatewayEndpoint(endpoint_id="app").SerializeToString())
    assert prepared.allowed is not None
    answer = read(CheckResponse.FromString(prepared.allowed))
    assert answer.upstream == {"endpoint-id": "app"}
    assert not answer.removed


@pytest.mark.parametrize("account", ["a\r\nx-admin: 1", "a\0", " a", "a ", "\x7f"])
def test_no_value_of_the_database_makes_a_header_of_its_own(account: str) -> None:
    endpoint = GatewayEndpoint(endpoint_id="app")
    endpoint.metadata.account_id = account
    assert Answers(UpstreamHeaders(), None).prepared(endpoint.SerializeToString()).allowed is None


def test_no_answer_holds_a_key() -> None:
    endpoint = GatewayEndpoint(endpoint_id="app")
    endpoint.auth.static_api_key.api_key = "sesame"
    answers = Answers(UpstreamHeaders(), "x-staleness")
    prepared = answers.prepared(endpoint.SerializeToString())
    assert prepared.allowed is not None
    told = [
        prepared.allowed,
        repr(prepared).encode(),
        *(answers.refused(each, prepared, 1) for each in ANSWERS),
    ]
    assert not any(b"sesame" in each for each in told)
