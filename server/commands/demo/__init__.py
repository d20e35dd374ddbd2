"""What `pads-cdc demo` runs on: an ephemeral Postgres cluster, a workload, and a live view."""

from __future__ import annotations

from server.commands.interrupt import Interrupt


def run(seconds: float | None, plain: bool, envoy: bool, relays: int) -> int:
    """Play the demo, for so many ``seconds`` of workload or until Ctrl-C, and return the exit code.

    With ``relays`` the subscribers are connected to so many of them, behind a broker. With ``envoy``
    requests go through a real Envoy, too; a key that it lets in after refusing it is a 1.

    0 if at the end the subscribers' maps were exactly what the mapping query finds (or if it was stopped
    before there was anything to compare), else 1. Whatever it started is gone when it returns.

    Raises:
        PadsCdcError: it cannot be had here, or something in it has failed.

    """
    with Interrupt() as interrupt:  # before anything else: the imports alone take a moment
        from server.commands.demo.play import play  # noqa: PLC0415

        return play(interrupt, seconds=seconds, plain=plain, envoy=envoy, relays=relays)
