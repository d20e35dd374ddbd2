"""An endpoint as it may be shown: how it authorizes, never whom or by which key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections import Counter

    from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

_PERIODS: Final = ("", "day", "week", "month")
"""By the numbers of CapacityLimitPeriod."""
_SHORT: Final = {"no_auth": "no auth", "static_api_key": "api key", "jwt": "jwt"}


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
    limits, period = endpoint.rate_limiting, _period(endpoint)
    every = f" a {period}" if period else ""
    return f"throughput {limits.throughput_limit:,}, capacity {limits.capacity_limit:,}{every}"


def auth_short(endpoint: GatewayEndpoint) -> str:
    """Say how an endpoint authorizes, in few letters."""
    kind = auth(endpoint)
    return _SHORT.get(kind, "refuses all")


def throughput(endpoint: GatewayEndpoint) -> str:
    """Say how many calls a second it may have."""
    limit = endpoint.rate_limiting.throughput_limit
    return f"{limit:,}" if limit else "any"


def capacity(endpoint: GatewayEndpoint) -> str:
    """Say how many calls in which period it may have."""
    limit, period = endpoint.rate_limiting.capacity_limit, _period(endpoint)
    if not limit:
        return "any"
    return f"{limit:,}/{period}" if period else f"{limit:,}"


def _period(endpoint: GatewayEndpoint) -> str:
    number = endpoint.rate_limiting.capacity_limit_period
    return _PERIODS[number] if number < len(_PERIODS) else ""


def printable(text: str) -> str:
    """Replace what a terminal would act on."""
    return "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in text)


def summary(kinds: Counter[str]) -> str:
    """Say how many endpoints authorize how, the most frequent way first."""
    return "".join(f"   {count:,} {kind}" for kind, count in kinds.copy().most_common() if count)
