"""`pads-cdc demo`: an ephemeral Postgres cluster, a workload, and a live view."""

from __future__ import annotations

from server.commands.interrupt import Interrupt


def run(seconds: float | None, plain: bool, envoy: bool, relays: int) -> int:
    """Run the demo for ``seconds`` of workload, or until Ctrl-C, and return the exit code.

    With ``relays`` above 0 the subscribers connect to this many relays behind a broker. With ``envoy``,
    requests also go through a real Envoy.

    The exit code is 0 if the subscribers' maps at the end equal the result of the mapping's query, or if the
    demo was stopped before there was anything to compare. It is 1 otherwise, and also if Envoy admits a key
    after refusing it. Everything that the demo started has ended when this returns.

    Raises:
        PadsCdcError: a program is missing on this machine, or a part of the demo failed.

    """
    with Interrupt() as interrupt:  # before the imports, which take a moment
        from server.commands.demo.play import play  # noqa: PLC0415

        return play(interrupt, seconds=seconds, plain=plain, envoy=envoy, relays=relays)
