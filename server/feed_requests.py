"""What comes in on the feed, read and judged: anything may come, and each mistake has its answer."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from server.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb

_CLIENT_ID_BYTES: Final = 128
NO_OPEN: Final = "the first message must be `open`"


class MisuseError(Exception):
    """The client does not keep to the protocol; the text says how, and holds nothing that it sent."""


def opening(raw: bytes) -> pb.Open:
    """Read the first message.

    Raises:
        MisuseError: it is another one, or does not name the client.

    """
    request = _parse(raw)
    if request.WhichOneof("request") != "open":
        raise MisuseError(NO_OPEN)
    name = request.open.client_id
    # It is shown on the status page and in logs: nothing may hide in it.
    if not 0 < len(name) <= _CLIENT_ID_BYTES or not name.isascii() or not name.isprintable():
        raise MisuseError(f"`client_id` must be 1 to {_CLIENT_ID_BYTES} printable ASCII characters")
    return request.open


def acknowledgement(raw: bytes) -> pb.Acknowledge:
    """Read any later message.

    Raises:
        MisuseError: it is another one.

    """
    request = _parse(raw)
    if request.WhichOneof("request") != "acknowledge":
        raise MisuseError("after the first message only `acknowledge` may come")
    return request.acknowledge


def _parse(raw: bytes) -> pb.WatchRequest:
    try:
        return pb.WatchRequest.FromString(raw)
    except DecodeError:
        raise MisuseError("a message is no WatchRequest") from None
