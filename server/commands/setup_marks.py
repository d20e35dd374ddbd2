"""The marks that `setup` writes into comments in the catalog, so that `teardown` undoes only what `setup`
did.

If a person has created an index or chosen an identity, it has no mark, and `teardown` keeps it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cdc.mapping.sql_text import quote_name

if TYPE_CHECKING:
    from cdc.mapping.tables import Index, Table

MADE: Final = "Made by pads-cdc setup."
"""The mark of a role, a publication or an index that `setup` created."""
_CHOSEN: Final = "Replica identity chosen by pads-cdc setup in place of {}."
_CHOSEN_BEFORE: Final = re.compile(
    r"\s*Replica identity chosen by pads-cdc setup in place of ((?:DEFAULT|FULL|NOTHING|USING INDEX .+))\.$"
)


def made(comment: str | None) -> bool:
    """Return whether `setup` created the object with this comment."""
    return comment is not None and MADE in comment


def identity_before(comment: str | None) -> str | None:
    """Return the identity that `setup` replaced by the commented index; None if it did not."""
    chosen = _CHOSEN_BEFORE.search(comment or "")
    return chosen[1] if chosen else None


def without_choice(comment: str | None) -> str | None:
    """Return the comment without the mark; None if the comment is then empty."""
    return _CHOSEN_BEFORE.sub("", comment or "") or None


def with_choice(index: Index, table: Table) -> str:
    """Return the comment, with a mark, of an index that replaces the table's current identity."""
    present = table.identity_index
    before = {"d": "DEFAULT", "f": "FULL", "n": "NOTHING"}.get(table.identity_kind)
    if before is None:
        # If an identity's index was dropped, the identity behaves like NOTHING, and cannot be chosen again.
        before = f"USING INDEX {present.name}" if present else "NOTHING"
    return " ".join(filter(None, (without_choice(index.comment), _CHOSEN.format(before))))


def comment_on(what: str, comment: str | None) -> str:
    """Return the statement that sets a comment, or removes it if it is None. ``what`` is already quoted."""
    return f"COMMENT ON {what} IS {literal(comment)};" if comment else f"COMMENT ON {what} IS NULL;"


def literal(text: str) -> str:
    """Quote text for SQL, for either value of standard_conforming_strings."""
    quoted = text.replace("'", "''")
    if "\\" not in quoted:
        return f"'{quoted}'"
    escaped = quoted.replace("\\", "\\\\")
    return f"E'{escaped}'"


def role_name(role: str) -> str:
    """Quote a role for COMMENT ON."""
    return f"ROLE {quote_name(role)}"
