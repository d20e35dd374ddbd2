"""Parses and checks the requests of the feed. Any bytes may arrive. Each kind of mistake has its own error
text.
"""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

_CLIENT_ID_BYTES: Final = 128
NO_OPEN: Final = "the first message must be `open`"
_ACKNOWLEDGE: Final = "after the first message only `acknowledge` may come"
_Request = TypeVar("_Request", pb.WatchRequest, pb.MirrorRequest)


class MisuseError(Exception):
    """The client violated the protocol. The text describes the mistake, and quotes nothing that the client
    sent.
    """


def opening(raw: bytes) -> pb.Open:
    """Parse the first message.

    Raises:
        MisuseError: the message is not `open`, or does not name the client.

    """
    request = _parse(raw, pb.WatchRequest)
    if request.WhichOneof("request") != "open":
        raise MisuseError(NO_OPEN)
    _check_name(request.open.client_id)
    return request.open


def mirror_opening(raw: bytes) -> pb.MirrorOpen:
    """Parse the first message of a standby server or relay.

    Raises:
        MisuseError: the message is not `open`, or does not name the client.

    """
    request = _parse(raw, pb.MirrorRequest)
    if request.WhichOneof("request") != "open":
        raise MisuseError(NO_OPEN)
    _check_name(request.open.client_id)
    return request.open


def mirror_acknowledgement(raw: bytes) -> pb.MirrorAcknowledge:
    """Parse a later message of a standby server or relay.

    Raises:
        MisuseError: the message is not `acknowledge`.

    """
    request = _parse(raw, pb.MirrorRequest)
    if request.WhichOneof("request") != "acknowledge":
        raise MisuseError(_ACKNOWLEDGE)
    return request.acknowledge


def acknowledgement(raw: bytes) -> pb.Acknowledge:
    """Parse a later message.

    Raises:
        MisuseError: the message is not `acknowledge`.

    """
    request = _parse(raw, pb.WatchRequest)
    if request.WhichOneof("request") != "acknowledge":
        raise MisuseError(_ACKNOWLEDGE)
    return request.acknowledge


def _check_name(name: str) -> None:
    # The status page and logs show it, so it must not contain anything invisible.
    if not 0 < len(name) <= _CLIENT_ID_BYTES or not name.isascii() or not name.isprintable():
        raise MisuseError(f"`client_id` must be 1 to {_CLIENT_ID_BYTES} printable ASCII characters")


def _parse(raw: bytes, kind: type[_Request]) -> _Request:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise MisuseError(f"a message cannot be parsed as {kind.DESCRIPTOR.name}") from None
