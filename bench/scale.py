"""``python -m bench.scale``: estimates the cost of a fleet of relays from measurements of one relay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import click

DELIVERIES: Final = 250_000
"""Number of changes that one core can send to subscribers in a second. 500 subscribers with 500 changes a
second use a whole core (`python -m bench fan_out`).
"""
ENDPOINT_BYTES: Final = 350
"""Memory of an endpoint in a process (`python -m bench memory`)."""
SUBSCRIBER_BYTES: Final = 64 * 1024
"""Memory of a subscriber under load (`python -m bench fan_out`)."""
STREAM_BYTES: Final = 3 * 130
"""Maximum size of an endpoint in the stream, before the older part is purged; see docs/scale.md."""
CHANGE_BYTES: Final = 250
"""Size of a change on the network, to a relay or a subscriber."""
SNAPSHOT_BYTES: Final = 130
"""Size of an endpoint on the network, to a relay that starts."""


@dataclass(frozen=True)
class Fleet:
    """The size of a fleet, and its changes."""

    relays: int
    gateways: int
    endpoints: int
    changes: float
    """Changes per second."""

    @property
    def subscribers(self) -> float:
        """Gateways of each relay, if they are spread evenly."""
        return self.gateways / self.relays

    @property
    def core(self) -> float:
        """The share of one core that each relay uses. With a share of 1 the relay falls behind."""
        return self.subscribers * self.changes / DELIVERIES

    def rows(self) -> list[tuple[str, str]]:
        """Return the cost, as text."""
        memory = self.endpoints * ENDPOINT_BYTES + self.subscribers * SUBSCRIBER_BYTES
        out = self.changes * CHANGE_BYTES
        return [
            ("gateways a relay", f"{self.subscribers:,.0f}"),
            ("a core of each relay", f"{self.core:.0%}{', too much' if self.core >= 1 else ''}"),
            ("memory of each relay", f"{memory / 1e6:,.0f} MB"),
            ("broker to all relays", f"{out * self.relays / 1e6:,.1f} MB/s"),
            ("each relay to its gateways", f"{out * self.subscribers / 1e6:,.1f} MB/s"),
            ("start of a relay", f"{self.endpoints * SNAPSHOT_BYTES / 1e6:,.0f} MB from the broker"),
            ("stream on disk, each copy", f"{self.endpoints * STREAM_BYTES / 1e6:,.0f} MB at most"),
            ("the leader and the database", "as with one relay"),
        ]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--relays", type=click.IntRange(1), default=100, show_default=True)
@click.option("--gateways", type=click.IntRange(0), default=50_000, show_default=True)
@click.option("--endpoints", type=click.IntRange(0), default=1_000_000, show_default=True)
@click.option("--changes", type=click.FloatRange(0), default=50.0, show_default=True, help="A second.")
def main(relays: int, gateways: int, endpoints: int, changes: float) -> None:
    """Print the cost of a fleet, assuming that gateways are spread evenly and every change goes to all."""
    for what, cost in Fleet(relays, gateways, endpoints, changes).rows():
        click.echo(f"{what:30} {cost}")


if __name__ == "__main__":
    main()
