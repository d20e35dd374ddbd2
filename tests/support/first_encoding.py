"""An old version of the server, for tests of an upgrade: it writes only the limits into field 3 (encoding 1).

Run this module with ``python -m`` in place of ``server``. It differs from the present server only in the
bytes of endpoints and in tokens.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from pads_cdc_client.pb.gateway_endpoint_pb2 import GatewayEndpoint

from cdc.state.token import Token
from server import payload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_encoder: Final = payload.encoder
_parse: Final = Token.parse


def encoder(columns: Sequence[str]) -> Callable[[tuple[Any, ...]], bytes]:
    """Return an encoder that writes no copy of the metadata."""
    encode = _encoder(columns)

    def encode_first(row: tuple[Any, ...]) -> bytes:
        endpoint = GatewayEndpoint.FromString(encode(row))
        endpoint.rate_limiting.DiscardUnknownFields()
        return endpoint.SerializeToString(deterministic=True)

    return encode_first


def parse(raw: bytes) -> Token | None:
    """Read a token as the old server did: its last byte, the encoding's version, was a boolean."""
    token = _parse(raw)
    return token and replace(token, encoding=min(token.encoding, 1))


payload.ENCODING = 1  # type: ignore[misc] # Final, but this test replaces it
payload.encoder = encoder
Token.parse = parse  # type: ignore[method-assign]

if __name__ == "__main__":
    from server.commands.cli import main

    main()
