"""Finds out why a server refused a connection, by its SQLSTATE, which the driver discards.

libpq receives the SQLSTATE, but leaves it out of the error text unless the caller asks for verbose errors
before it connects. psycopg2 does not ask for them. So after a refusal the connection is tried once more with
libpq itself, the same library that psycopg2 is linked with. The server's text depends on its language; the
SQLSTATE does not.
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
"""Time limit of the second attempt, in seconds. The first attempt was answered sooner."""
_FAILED, _READING, _WRITING, _OK = range(4)
_VERBOSE: Final = 2

_ANSWER: Final = re.compile(r":  (?=\S)")
"""Matches the separator that libpq writes after a severity, in any language. libpq's own texts do not contain
it.
"""
_CODED: Final = re.compile(r":  (?P<code>[0-9A-Z]{5}): (?P<text>[^\n]*)")
_LOCATION: Final = re.compile(r":  (?P<function>\w+), \w+\.c:\d+$", re.MULTILINE)


@dataclass(frozen=True)
class Refused:
    """A server's answer when it refused a connection."""

    code: str
    """The SQLSTATE."""
    text: str
    """The server's error text, one line, in the server's language."""
    function: str = ""
    """The function in the server's source that refused; empty if a pooler did."""


def answered(error: psycopg2.Error) -> bool:
    """Return whether a server answered the attempt to connect that failed."""
    return _ANSWER.search(str(error)) is not None


LET_IN: Final = Refused("00000", "")
"""The answer if the server now accepts the connection."""


def why(parameters: Mapping[str, Any]) -> Refused | None:
    """Try a connection again, and return why it is refused; None if no server answers any more.

    If there are several hosts, the answer is that of the last one that answers. Blocks for at most 5 s.
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
    """Connect, disconnect, and return libpq's error text; None if the server accepted."""
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
    """Return the libpq that psycopg2's extension module uses: the bundled one or the system's."""
    libpq = ctypes.CDLL(_psycopg.__file__)
    libpq.PQconnectStart.argtypes, libpq.PQconnectStart.restype = [ctypes.c_char_p], ctypes.c_void_p
    libpq.PQsetErrorVerbosity.argtypes = [ctypes.c_void_p, ctypes.c_int]
    for function in (libpq.PQconnectPoll, libpq.PQsocket, libpq.PQfinish, libpq.PQerrorMessage):
        function.argtypes = [ctypes.c_void_p]
    libpq.PQerrorMessage.restype = ctypes.c_char_p
    return libpq
