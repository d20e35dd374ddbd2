"""Checks the encoding and the types: can all values be decoded, compared, and sent to gateways?"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from cdc.checks.finding import fail, good, warn
from cdc.checks.mapping import with_place
from cdc.errors import PadsCdcError
from cdc.mapping.key_types import parameter
from cdc.postgres.encoding import Encoding
from cdc.postgres.errors import is_lasting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cdc.checks.finding import Finding, Site
    from cdc.mapping.key_types import KeyType
    from cdc.postgres.connection import Address

_LIMITS: Final = frozenset({"throughput_limit", "capacity_limit"})
_INT32: Final = frozenset({"smallint", "integer"})
_TEXT, _ENUM, _NUMBER, _BOOLEAN, _LIST, _NOTHING = "SENBAX"
"""Categories of types that can be read as text. The last one is the category of a NULL without a type."""
_NO_NUMBERS: Final = re.compile(r"money|reg[a-z]+")
"""Types that Postgres counts as numbers, but prints as an amount or as the name of an object. The printed
text can change although no row does.
"""


def encoding(site: Site) -> Iterator[Finding]:
    """Check the database's encoding, on the slot's server and on the query server."""
    found = dict.fromkeys(_encoding_at(address) for address in (site.source, site.database.address))
    yield good(f"the database is in the encoding {' and '.join(found)}")


def _encoding_at(address: Address) -> str:
    connection = address.connect()
    try:
        return Encoding.of(connection).name
    finally:
        connection.close()


def column_types(site: Site) -> Iterator[Finding]:
    """Check the types of the columns of `Endpoints`: gateways receive text, lists of text, and numbers."""
    types = site.types
    wrong = {
        column: wanted
        for column in site.database.mapping.columns
        if (wanted := _lacks(column, types.columns[column])) is not None
    }
    for column, wanted in wrong.items():
        yield fail(
            f"{site.described(column)} is {types.columns[column].name}, not {wanted}",
            f"change its type to {wanted}; or cast it, in the query Endpoints of a mapping of your own",
        )
    if not wrong:
        yield good("all columns are text, lists of text, or numbers")


def _lacks(column: str, of_column: KeyType) -> str | None:
    """Return the type that a column should have; None if the column's type can be sent."""
    category, name = of_column.category, of_column.name
    if category == _NUMBER and _NO_NUMBERS.fullmatch(name):
        category = ""
    if category == _NOTHING:
        return None
    if column == "authorized_users":
        return None if category == _LIST else "a list of text"
    if column in _LIMITS:
        return None if category in (_NUMBER, _TEXT) else "a number"
    if column == "secret_key_required":
        return None if category in (_BOOLEAN, _NUMBER, _TEXT) else "a boolean"
    return None if category in (_TEXT, _ENUM, _NUMBER) or name == "uuid" else "text"


def limits(site: Site) -> Iterator[Finding]:
    """Find limits whose type allows values that a message cannot contain."""
    sound = True
    for column, of_column in site.types.columns.items():
        if column in _LIMITS and of_column.name not in _INT32 and of_column.category != _NOTHING:
            sound = False
            yield warn(
                f"{site.described(column)} is {of_column.name}: a limit beyond 32 bits is served as the"
                " nearest one of 32 bits, and an endpoint whose limit is not a number is left out",
                "make it INT; or keep such limits out by a CHECK",
            )
    if sound:
        yield good("limits are whole numbers of 32 bits")


def key_types(site: Site) -> Iterator[Finding]:
    """Plan the statements that look up changed endpoints, with keys of the types that the tables have."""
    database = site.database
    mapping, types = database.mapping, (site.types.columns, site.types.id_type)
    wrong = False
    kinds = site.kinds
    for kind, (rule, of_column) in kinds.items():
        try:
            database.plan(mapping.compose([kind], *types), {parameter(kind): []})
        except PadsCdcError as error:
            if not is_lasting(error):
                raise
            wrong = True
            yield fail(
                f"keys of {rule.table}.{rule.column}, which is {of_column.name}, cannot be looked up by"
                f" {rule.query}: {with_place(error).partition('; ')[0]}",
                "give the columns that are compared one type, or cast them in a mapping of your own",
            )
    if not wrong:
        database.plan(mapping.compose(kinds, *types), {parameter(kind): [] for kind in kinds})
        database.plan(mapping.full(*types), {})
        yield good("all changes can be looked up by their keys")
