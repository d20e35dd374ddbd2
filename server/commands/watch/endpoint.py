"""Describes endpoints for people: how they authorize callers. Users and keys are never shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import Counter

    from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

_PERIODS: Final = ("", "day", "week", "month")
"""Names of periods, by the numbers of CapacityLimitPeriod."""
_SHORT: Final = {"no_auth": "no auth", "static_api_key": "api key", "jwt": "jwt"}


def auth(endpoint: GatewayEndpoint) -> str:
    """Return the way in which an endpoint authorizes its callers."""
    kind = endpoint.auth.WhichOneof("auth_type")
    if kind == "static_api_key" and not endpoint.auth.static_api_key.api_key:
        return "static_api_key (empty: refuses all)"
    return kind or "unset (refuses all)"


def plan(endpoint: GatewayEndpoint) -> str:
    """Return the name of an endpoint's plan."""
    return printable(endpoint.metadata.plan_type) or "no plan"


def limits(endpoint: GatewayEndpoint) -> str:
    """Return an endpoint's limits as one text."""
    limits, period = endpoint.rate_limiting, _period(endpoint)
    every = f" a {period}" if period else ""
    return f"throughput {limits.throughput_limit:,}, capacity {limits.capacity_limit:,}{every}"


def auth_short(endpoint: GatewayEndpoint) -> str:
    """Return the way in which an endpoint authorizes its callers, abbreviated."""
    kind = auth(endpoint)
    return _SHORT.get(kind, "refuses all")


def throughput(endpoint: GatewayEndpoint) -> str:
    """Return an endpoint's limit of calls a second."""
    limit = endpoint.rate_limiting.throughput_limit
    return f"{limit:,}" if limit else "any"


def capacity(endpoint: GatewayEndpoint) -> str:
    """Return an endpoint's limit of calls in a period."""
    limit, period = endpoint.rate_limiting.capacity_limit, _period(endpoint)
    if not limit:
        return "any"
    return f"{limit:,}/{period}" if period else f"{limit:,}"


def _period(endpoint: GatewayEndpoint) -> str:
    number = endpoint.rate_limiting.capacity_limit_period
    return _PERIODS[number] if number < len(_PERIODS) else ""


def printable(text: str) -> str:
    """Replace characters that a terminal would interpret."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def summary(kinds: Counter[str]) -> str:
    """Return the number of endpoints for each way of authorizing, the most frequent first."""
    return "".join(f"   {count:,} {kind}" for kind, count in kinds.copy().most_common() if count)
