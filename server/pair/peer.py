"""Connections to a peer or a leader (address, TLS, token), and the streams of its map."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Final

import grpc
from pads_cdc_client.outbox import Outbox
from pads_cdc_client.pb.pads.cdc.v1 import endpoint_feed_pb2 as pb
from pads_cdc_client.retry import Backoff, Remedy, remedy

from server.security.reloaded import read_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Take = Callable[[pb.MirrorResponse, Outbox[pb.MirrorRequest]], str | None]
    """Handles a message, and puts acknowledgements into the outbox. Returns the reason if the stream must
    end, otherwise None.
"""

_MIRROR: Final = f"/{pb.DESCRIPTOR.services_by_name['EndpointFeedService'].full_name}/Mirror"
_FIRST_WORD_SECONDS: Final = 45.0
"""Maximum wait for the first message, in seconds. A server without a complete map answers UNAVAILABLE after
30 s.
"""
_SILENT_INTERVALS: Final = 3
"""A stream is abandoned after this many progress intervals without a message."""
_PACE: Final = 0.02
"""Minimum time between acknowledgements, in seconds. It is short, since the leader waits for them before it
confirms the slot.
"""

_OPTIONS: Final = (
    ("grpc.max_receive_message_length", -1),  # an endpoint may have any size
    ("grpc.enable_http_proxy", 0),
    # A connection that has died silently is detected within half a minute.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
)


class Peer:
    """The peer's address and our credentials. Files are read at each connection, so they can change."""

    def __init__(
        self,
        address: str,
        ca_file: Path | None = None,
        cert_file: Path | None = None,
        key_file: Path | None = None,
        token_file: Path | None = None,
        setting: str = "PEER",
    ) -> None:
        """``ca_file`` enables TLS. ``cert_file`` and ``key_file`` enable mutual TLS. ``setting`` is the
        prefix of the settings' names.
        """
        self._setting = setting
        self._address = address
        self._ca_file = ca_file
        self._cert_file = cert_file
        self._key_file = key_file
        self._token_file = token_file

    def verify(self) -> None:
        """Check at the start that the files can be read. Later they may change.

        Raises:
            ConfigurationError: a file cannot be read.

        """
        for setting, path in (
            ("CA_FILE", self._ca_file),
            ("CERT_FILE", self._cert_file),
            ("KEY_FILE", self._key_file),
            ("TOKEN_FILE", self._token_file),
        ):
            if path is not None:
                read_file(f"{self._setting}_{setting}", path)

    def channel(self) -> grpc.Channel:
        """Open a connection.

        Raises:
            OSError: a file cannot be read.

        """
        if self._ca_file is None:
            return grpc.insecure_channel(self._address, options=_OPTIONS)
        credentials = grpc.ssl_channel_credentials(
            self._ca_file.read_bytes(),
            None if self._key_file is None else self._key_file.read_bytes(),
            None if self._cert_file is None else self._cert_file.read_bytes(),
        )
        return grpc.secure_channel(self._address, credentials, options=_OPTIONS)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of each call: the token, if there is one.

        Raises:
            OSError: the token's file cannot be read.

        """
        if self._token_file is None:
            return ()
        return (("authorization", f"Bearer {self._token_file.read_text().strip()}"),)


class MirrorStream:
    """Reads the streams of a server's map, one after the other. One thread reads; any thread may call
    `cancel`.
    """

    def __init__(self, peer: Peer, unwanted: Callable[[], bool] = lambda: False) -> None:
        """``unwanted`` is called twice a second, and returns whether the stream must end."""
        self._peer = peer
        self._unwanted = unwanted
        self._call: grpc.Call | None = None
        self._heard_at = 0.0
        self._patience = 0.0

    def read(self, opening: pb.MirrorRequest, take: Take, backoff: Backoff) -> tuple[Remedy, str]:
        """Pass the messages of a new stream to ``take``. Return what to do after its end, and why it ended.

        Raises:
            OSError, ValueError: a file of the credentials cannot be used.

        """
        outbox = Outbox(opening, self._look, _PACE)
        self._heard_at, self._patience = time.monotonic(), _FIRST_WORD_SECONDS
        with self._peer.channel() as channel:
            mirror = channel.stream_stream(
                _MIRROR,
                request_serializer=pb.MirrorRequest.SerializeToString,
                response_deserializer=pb.MirrorResponse.FromString,
            )
            call = self._call = mirror(outbox, metadata=self._peer.metadata())
            try:
                for message in call:
                    self._heard_at = math.inf  # its silence does not count while we process this
                    if message.HasField("opened"):
                        interval = message.opened.progress_interval.ToNanoseconds() / 1e9
                        self._patience = _SILENT_INTERVALS * interval
                    if (why := take(message, outbox)) is not None:
                        return Remedy.RETRY, why
                    backoff.succeeded()
                    self._heard_at = time.monotonic()
            except grpc.RpcError:
                code, details = call.code(), " ".join((call.details() or "").split())
                return remedy(code), f"{code.name} {details}"
            finally:
                self._call = None
                outbox.close()
                call.cancel()
        return Remedy.RETRY, "it ended a stream that has no end"

    def cancel(self) -> None:
        """End the current stream, if there is one. Does not block."""
        call = self._call
        if call is not None:
            call.cancel()

    def _look(self) -> None:
        """End the stream if the server has been silent for too long, or if the stream is unwanted."""
        if self._unwanted() or time.monotonic() - self._heard_at > self._patience:
            self.cancel()
