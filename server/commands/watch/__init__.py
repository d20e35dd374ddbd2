"""`pads-cdc watch`: shows the changes that a server sends, as they arrive. It never shows a key."""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cdc.errors import ConfigurationError

if TYPE_CHECKING:
    from server.commands.watch.screen import Watched

_TARGET: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_LOOPBACK: Final = re.compile(r"localhost|127\.[0-9.]+|\[::1\]")
_HIGHEST_PORT: Final = 65_535


def run(
    target: str,
    *,
    protocol: str = "feed",
    as_json: bool = False,
    resume: str | None = None,
    until_synced: bool = False,
    ca_file: str | None = None,
    cert_file: str | None = None,
    key_file: str | None = None,
    token_file: str | None = None,
) -> int:
    """Show the changes that ``target`` (host:port) sends until Ctrl-C, and return 0.

    Without a terminal it prints a line for each event.

    Raises:
        ConfigurationError: ``target`` is malformed, or the options contradict each other.
        FeedRefusedError: the server reports that we violate the protocol.
        NotGrpcError: the server does not speak gRPC.

    """
    match = _TARGET.fullmatch(target)
    if match is None or not 0 < int(match[1]) <= _HIGHEST_PORT:
        shown = "".join(each if each.isprintable() else "\N{REPLACEMENT CHARACTER}" for each in target)
        raise ConfigurationError(f"watch: {shown!r} is not host:port; for example 127.0.0.1:10002")
    if protocol == "old":
        others = {
            "--json": as_json,
            "--resume": resume is not None,
            "--until-synced": until_synced,
            "--ca-file": ca_file,
            "--cert-file": cert_file,
            "--key-file": key_file,
            "--token-file": token_file,
        }
        if given := ", ".join(name for name, value in others.items() if value):
            raise ConfigurationError(f"watch: --protocol old has no other options; leave out {given}")
    token = b"" if resume is None else _resume_token(resume)
    if (cert_file is None) != (key_file is None) or (cert_file and not ca_file):
        raise ConfigurationError("watch: --cert-file and --key-file go together, and with --ca-file")
    if token_file and not ca_file and not _LOOPBACK.fullmatch(target.rpartition(":")[0]):
        raise ConfigurationError("watch: --token-file needs --ca-file: a token never travels in plaintext")
    pem = [None if file is None else _read(file) for file in (ca_file, key_file, cert_file)]

    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # we report errors of the connection ourselves
    import grpc  # noqa: PLC0415 - reads the variable when imported

    from server.commands.watch.show import show, write_json  # noqa: PLC0415 - likewise

    if protocol == "old":
        from server.commands.watch.old import WatchedOld  # noqa: PLC0415 - likewise

        show(WatchedOld(target))
        return 0
    from server.commands.watch.feed import FeedSubscriber  # noqa: PLC0415 - likewise
    from server.commands.watch.view import WatchedFeed  # noqa: PLC0415 - likewise

    credentials = None if ca_file is None else grpc.ssl_channel_credentials(*pem)
    bearer = None if token_file is None else Path(token_file)
    feed = FeedSubscriber(target, token, credentials=credentials, bearer=bearer)
    if as_json:
        write_json(feed, until_synced=until_synced)
    else:
        watched: Watched = WatchedFeed(target, feed, until_synced=until_synced)
        show(watched)
    return 0


def _resume_token(text: str) -> bytes:
    try:
        token = base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        token = b""
    if not token:
        raise ConfigurationError("watch: --resume takes a token as --json prints it at each checkpoint")
    return token


def _read(file: str) -> bytes:
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"watch: {file}: {error.strerror}") from error
