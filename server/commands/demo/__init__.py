"""`pads-cdc demo`: an ephemeral Postgres cluster, a workload, and a live view."""

from __future__ import annotations

from server.commands.interrupt import Interrupt


def run(seconds: float | None, plain: bool, envoy: bool, relays: int) -> int:
    """Run the demo for ``seconds`` of workload, or until Ctrl-C, and return the exit code.

    If ``relays`` is not 0, the subscribers connect to this number of relays behind a broker. With ``envoy``,
    requests also go through a real Envoy.

    The exit code is 0 if the subscribers' maps are at the end equal to the result of the mapping's query, or
    if the demo was stopped before there was anything to compare. Otherwise it is 1. It is also 1 if Envoy
    admits a key after it has refused the key. When this function returns, everything that the demo started
    has ended.

    Raises:
        PadsCdcError: a program is missing on this machine, or a part of the demo failed.

    """
    with Interrupt() as interrupt:  # before the imports, which take a moment
        from server.commands.demo.play import play  # noqa: PLC0415

        return play(interrupt, seconds=seconds, plain=plain, envoy=envoy, relays=relays)
