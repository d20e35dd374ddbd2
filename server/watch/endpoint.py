"""An endpoint as it may be shown: how it authorizes, never whom or by which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import Counter

    from server.pb.gateway_endpoint_pb2 import GatewayEndpoint

_PERIODS: Final = ("", " a day", " a week", " a month")
"""By the numbers of CapacityLimitPeriod."""


def auth(endpoint: GatewayEndpoint) -> str:
    """Say how an endpoint authorizes."""
    kind = endpoint.auth.WhichOneof("auth_type")
    if kind == "static_api_key" and not endpoint.auth.static_api_key.api_key:
        return "static_api_key (empty: refuses all)"
    return kind or "unset (refuses all)"


def plan(endpoint: GatewayEndpoint) -> str:
    """Name its plan."""
    return printable(endpoint.metadata.plan_type) or "no plan"


def limits(endpoint: GatewayEndpoint) -> str:
    """Say how much it may be called."""
    limits = endpoint.rate_limiting
    period = _PERIODS[limits.capacity_limit_period] if limits.capacity_limit_period < len(_PERIODS) else ""
    return f"throughput {limits.throughput_limit:,}, capacity {limits.capacity_limit:,}{period}"


def printable(text: str) -> str:
    """Replace what a terminal would act on."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def summary(kinds: Counter[str]) -> str:
    """Say how many endpoints authorize how, the most frequent way first."""
    return "".join(f"   {count:,} {kind}" for kind, count in kinds.copy().most_common() if count)
