"""Addresses to listen on, and a one-line error for a failure to listen."""

from __future__ import annotations

import errno
from typing import Final

from cdc.errors import PadsCdcError

_WHY: Final = {
    errno.EADDRINUSE: "something else listens there; stop it, or choose another port with {port_setting}",
    errno.EACCES: "that needs privileges; choose a port above 1023 with {port_setting}",
    errno.EADDRNOTAVAIL: "this machine has no such address; choose another with {host_setting}",
}


class ListenError(PadsCdcError):
    """Listening on an address failed; the text names the settings to change."""


def address(host: str, port: int) -> str:
    """Write ``host:port``, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def refusal(what: str, host: str, port: int, cause: OSError, *, prefix: str = "") -> ListenError:
    """Make the error for ``what`` (such as "gRPC"). The names of its two settings begin with ``prefix``."""
    why = _WHY.get(
        cause.errno or 0, f"{cause.strerror or 'unknown host'}; see {{host_setting}}, {{port_setting}}"
    )
    why = why.format(host_setting=f"{prefix}HOST", port_setting=f"{prefix}PORT")
    return ListenError(f"{what} cannot listen on {address(host, port)}: {why}")
