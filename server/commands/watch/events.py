"""The events of the endpoint feed that `watch` shows. As JSON they contain no key."""

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
    """A stream was opened."""

    resumed: bool
    reason: str
    """Why a snapshot follows, such as ``no_token``; empty if no snapshot follows."""
    count: int
    """Number of endpoints in the snapshot."""
    synced: ClassVar = False

    def public(self) -> dict[str, Any]:
        """Return the event in JSON's types."""
        if self.resumed:
            return {"event": "resumed"}
        return {"event": "reset", "reason": self.reason, "endpoints": self.count}


@dataclass(frozen=True)
class Changed:
    """An endpoint was added, changed or removed."""

    change: Change
    initial: bool
    """Whether it is part of the first snapshot, so that nothing has changed in the database."""
    synced: ClassVar = False

    @property
    def before(self) -> GatewayEndpoint | None:
        """The endpoint before the change; None if it is unknown or there was none."""
        return None if self.change.before is None else GatewayEndpoint.FromString(self.change.before)

    @property
    def after(self) -> GatewayEndpoint | None:
        """The endpoint after the change; None if it was removed."""
        return None if self.change.after is None else GatewayEndpoint.FromString(self.change.after)

    def public(self) -> dict[str, Any]:
        """Return the event in JSON's types, without the key."""
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
    """A checkpoint. What the server has sent so far is a whole map."""

    revision: int
    count: int
    """Number of endpoints in the server's map."""
    digest: str
    """The digest of the server's map."""
    verified: bool
    """Whether our digest is equal. After ``--resume`` we have no map to compare."""
    staleness: float
    """Seconds since the map was last known to be equal to the database."""
    unsettled: bool
    """Whether the database may never have had exactly this map, because of many changes."""
    token: bytes

    @property
    def synced(self) -> bool:
        """Whether the checkpoint proves the map: it is verified, and not unsettled."""
        return not self.unsettled

    def public(self) -> dict[str, Any]:
        """Return the event in JSON's types."""
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
    """Our map differs from the server's. A snapshot follows."""

    synced: ClassVar = False

    def public(self) -> dict[str, Any]:
        """Return the event in JSON's types."""
        return {"event": "mismatch"}


@dataclass(frozen=True)
class StreamLost:
    """The stream has ended. The next attempt follows after ``retry_seconds``."""

    reason: str
    """Why it ended, in one line."""
    retry_seconds: float
    synced: ClassVar = False

    def public(self) -> dict[str, Any]:
        """Return the event in JSON's types."""
        return {"event": "lost", "reason": self.reason, "retry_seconds": round(self.retry_seconds, 1)}


Event = StreamOpened | Changed | CheckpointReached | Mismatched | StreamLost
