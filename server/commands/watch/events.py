"""What happens on the endpoint feed, for those who look on; as JSON it holds no key."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from pads_cdc_client.pb.gateway_endpoint_pb2 import CapacityLimitPeriod, GatewayEndpoint

from server.commands.watch.endpoint import auth

if TYPE_CHECKING:
    from pads_cdc_client.replica import Change


@dataclass(frozen=True)
class StreamOpened:
    """A stream stands."""

    resumed: bool
    reason: str
    """Why everything is sent anew, such as ``no_token``; empty where it is not."""
    count: int
    """Endpoints that are going to be sent."""
    synced: ClassVar = False

    def public(self) -> dict[str, Any]:
        """Say it in JSON's types."""
        if self.resumed:
            return {"event": "resumed"}
        return {"event": "reset", "reason": self.reason, "endpoints": self.count}


@dataclass(frozen=True)
class Changed:
    """An endpoint came, changed or went."""

    change: Change
    initial: bool
    """It is part of the first snapshot: nothing has happened to it."""
    synced: ClassVar = False

    @property
    def before(self) -> GatewayEndpoint | None:
        """What it was, where that is known."""
        return None if self.change.before is None else GatewayEndpoint.FromString(self.change.before)

    @property
    def after(self) -> GatewayEndpoint | None:
        """What it is; None if it is gone."""
        return None if self.change.after is None else GatewayEndpoint.FromString(self.change.after)

    def public(self) -> dict[str, Any]:
        """Say it in JSON's types, without the key."""
        told = {"endpoint_id": self.change.endpoint_id, "revision": self.change.revision}
        if (after := self.after) is None:
            return {"event": "delete", **told}
        rates = after.rate_limiting
        return {
            "event": "upsert",
            **told,
            "initial": self.initial,
            "auth": auth(after),
            "account_id": after.metadata.account_id,
            "plan_type": after.metadata.plan_type,
            "throughput_limit": rates.throughput_limit,
            "capacity_limit": rates.capacity_limit,
            "capacity_limit_period": CapacityLimitPeriod.Name(rates.capacity_limit_period),
        }


@dataclass(frozen=True)
class CheckpointReached:
    """What was sent is a map that the server holds, as a whole."""

    revision: int
    count: int
    """Endpoints in the server's map."""
    digest: str
    """Of the server's map."""
    verified: bool
    """Ours is the same. After ``--resume`` there is none of ours to compare."""
    staleness: float
    """Seconds since it was known to be the database's."""
    unsettled: bool
    """It is the server's, and not one that the database has had: so much is happening."""
    token: bytes

    @property
    def synced(self) -> bool:
        """Whether it is one that the database has had: only that is a proof."""
        return not self.unsettled

    def public(self) -> dict[str, Any]:
        """Say it in JSON's types."""
        return {
            "event": "checkpoint",
            "revision": self.revision,
            "endpoints": self.count,
            "digest": self.digest,
            "verified": self.verified,
            "staleness_seconds": self.staleness,
            "unsettled": self.unsettled,
            "resume_token": base64.urlsafe_b64encode(self.token).decode(),
        }


@dataclass(frozen=True)
class Mismatched:
    """Our map is not the server's; it is going to be sent anew."""

    synced: ClassVar = False

    def public(self) -> dict[str, Any]:
        """Say it in JSON's types."""
        return {"event": "mismatch"}


@dataclass(frozen=True)
class StreamLost:
    """There is no stream; the next attempt follows after ``retry_seconds``."""

    reason: str
    """One line."""
    retry_seconds: float
    synced: ClassVar = False

    def public(self) -> dict[str, Any]:
        """Say it in JSON's types."""
        return {"event": "lost", "reason": self.reason, "retry_seconds": round(self.retry_seconds, 1)}


Event = StreamOpened | Changed | CheckpointReached | Mismatched | StreamLost
