"""The options, the decoder and the assembler of a slot's stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cdc.units import Xid8

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cdc.changes import Decoder
    from cdc.postgres.encoding import Encoding
    from cdc.replication.assembler import Assembler


@dataclass(frozen=True)
class SlotStream:
    """The parts of one connection's stream. Each connection has its own, since the server starts over with
    it.
    """

    assembler: Assembler
    decoder: Decoder
    options: Mapping[str, str]
    """The plugin's options."""
    encoding: Encoding | None = None
    """The database's encoding if the session asks for no conversion; None if it asks for UTF-8."""
    published_as: str | None = None
    """`Relations.published_as` when the stream was prepared; None if the plugin needs no publication."""
    suspects: Xid8 = Xid8(0)
    """Transactions below this id (64 bits) may have changed rows that the stream leaves out."""

    def start(self, slot: str) -> bytes:
        """Return the command that starts the stream. ``slot`` is the slot's quoted name.

        psycopg2's own method cannot write names with characters outside of Latin-1.
        """
        # The grammar of replication commands has doubled quotes, but no backslash escapes.
        quoted = ((name, value.replace("'", "''")) for name, value in self.options.items())
        given = ", ".join(f"\"{name}\" '{value}'" for name, value in quoted)
        command = f"START_REPLICATION SLOT {slot} LOGICAL 0/0 ({given})"
        return command.encode() if self.encoding is None else self.encoding.raw(command)
