"""What comes in on the feed, read and judged: anything may come, and each mistake has its answer."""

from __future__ import annotations

from typing import Final, TypeVar

from google.protobuf.message import DecodeError
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

_CLIENT_ID_BYTES: Final = 128
NO_OPEN: Final = "the first message must be `open`"
_ACKNOWLEDGE: Final = "after the first message only `acknowledge` may come"
_Request = TypeVar("_Request", pb.WatchRequest, pb.MirrorRequest)


class MisuseError(Exception):
    """The client does not keep to the protocol; the text says how, and holds nothing that it sent."""


def opening(raw: bytes) -> pb.Open:
    """Read the first message.

    Raises:
        MisuseError: it is another one, or does not name the client.

    """
    request = _parse(raw, pb.WatchRequest)
    if request.WhichOneof("request") != "open":
        raise MisuseError(NO_OPEN)
    _check_name(request.open.client_id)
    return request.open


def mirror_opening(raw: bytes) -> pb.MirrorOpen:
    """Read the first message of a standby.

    Raises:
        MisuseError: it is another one, or does not name the standby.

    """
    request = _parse(raw, pb.MirrorRequest)
    if request.WhichOneof("request") != "open":
        raise MisuseError(NO_OPEN)
    _check_name(request.open.client_id)
    return request.open


def mirror_acknowledgement(raw: bytes) -> pb.MirrorAcknowledge:
    """Read any later message of a standby.

    Raises:
        MisuseError: it is another one.

    """
    request = _parse(raw, pb.MirrorRequest)
    if request.WhichOneof("request") != "acknowledge":
        raise MisuseError(_ACKNOWLEDGE)
    return request.acknowledge


def acknowledgement(raw: bytes) -> pb.Acknowledge:
    """Read any later message.

    Raises:
        MisuseError: it is another one.

    """
    request = _parse(raw, pb.WatchRequest)
    if request.WhichOneof("request") != "acknowledge":
        raise MisuseError(_ACKNOWLEDGE)
    return request.acknowledge


def _check_name(name: str) -> None:
    # It is shown on the status page and in logs: nothing may hide in it.
    if not 0 < len(name) <= _CLIENT_ID_BYTES or not name.isascii() or not name.isprintable():
        raise MisuseError(f"`client_id` must be 1 to {_CLIENT_ID_BYTES} printable ASCII characters")


def _parse(raw: bytes, kind: type[_Request]) -> _Request:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise MisuseError(f"a message is no {kind.DESCRIPTOR.name}") from None
