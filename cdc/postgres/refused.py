"""Why a server refused a connection: its SQLSTATE, which the driver throws away.

libpq reads the code, and leaves it out of the only text that it gives for a connection that failed, unless it
was asked for all of that before the connection was begun. psycopg2 does not ask. So, after a refusal, the
same is tried once more with libpq itself, the very library that psycopg2 is linked with. What the server says
in words depends on its language; the code does not.
"""

from __future__ import annotations

import ctypes
import re
import select
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import psycopg2
from psycopg2 import _psycopg
from psycopg2.extensions import make_dsn

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS: Final = 5.0
"""How long the second try may take: the first one was answered in less."""
_FAILED, _READING, _WRITING, _OK = range(4)
_VERBOSE: Final = 2

_ANSWER: Final = re.compile(r":  (?=\S)")
"""How libpq separates a severity, in any language, from the rest; nothing of its own looks like that."""
_CODED: Final = re.compile(r":  (?P<code>[0-9A-Z]{5}): (?P<text>[^\n]*)")
_LOCATION: Final = re.compile(r":  (?P<function>\w+), \w+\.c:\d+$", re.MULTILINE)


@dataclass(frozen=True)
class Refused:
    """What a server answered in place of letting us in."""

    code: str
    """The SQLSTATE."""
    text: str
    """The server's words, one line, in its language."""
    function: str = ""
    """The function of the server's source that says it; empty where a pooler does."""


def answered(error: psycopg2.Error) -> bool:
    """Tell whether a failed connection has met a server at all."""
    return _ANSWER.search(str(error)) is not None


LET_IN: Final = Refused("00000", "")
"""Nothing is refused any more."""


def why(parameters: Mapping[str, Any]) -> Refused | None:
    """Try a connection again and return why it is refused; None if nobody answers now.

    Of several hosts the last one that answers counts. Blocks for 5 s at most.
    """
    said = _try(make_dsn(**parameters).encode())
    if said is None:
        return LET_IN
    found = [*_CODED.finditer(said)]
    if not found:
        return None
    location = _LOCATION.search(said, found[-1].end())
    return Refused(found[-1]["code"], found[-1]["text"], location["function"] if location else "")


def _try(conninfo: bytes) -> str | None:
    """Connect, hang up, and return what libpq says of it; None if it went well."""
    libpq, deadline = _libpq(), time.monotonic() + _SECONDS
    connection = libpq.PQconnectStart(conninfo)
    libpq.PQsetErrorVerbosity(connection, _VERBOSE)
    try:
        state = _WRITING
        while state in (_READING, _WRITING):
            left, socket = deadline - time.monotonic(), libpq.PQsocket(connection)
            if left <= 0 or socket < 0:
                break
            waiting = select.poll()
            waiting.register(socket, select.POLLIN if state == _READING else select.POLLOUT)
            waiting.poll(left * 1000)
            state = libpq.PQconnectPoll(connection)
        said: bytes = libpq.PQerrorMessage(connection)
        return None if state == _OK else said.decode(errors="replace")
    finally:
        libpq.PQfinish(connection)


@cache
def _libpq() -> ctypes.CDLL:
    """Return libpq, found as a symbol of psycopg2's own extension finds it: bundled or the system's."""
    libpq = ctypes.CDLL(_psycopg.__file__)
    libpq.PQconnectStart.argtypes, libpq.PQconnectStart.restype = [ctypes.c_char_p], ctypes.c_void_p
    libpq.PQsetErrorVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    for function in (libpq.PQconnectPoll, libpq.PQsocket, libpq.PQfinish, libpq.PQerrorMessage):
        function.argtypes = [ctypes.c_void_p]
    libpq.PQerrorMessage.restype = ctypes.c_char_p
    return libpq
