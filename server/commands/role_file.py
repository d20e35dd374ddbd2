"""The file with the connection string of the service's role: `setup` writes it, `serve` and `check` read it.

A password is never shown. It is in this file alone, 0600, and in the server as a SCRAM verifier.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg2
from psycopg2.extensions import make_dsn, parse_dsn

from cdc.errors import ConfigurationError, PadsCdcError
from server.config.connection_string import ConnectionString

if TYPE_CHECKING:
    from typing import Self

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

_KEPT = ("host", "hostaddr", "port", "sslmode", "sslrootcert", "sslcrl", "channel_binding")
"""What the administrator's connection string says of the server, and not of the administrator."""
_NAME = "--role-file"


class RoleFile:
    """The connection string of one role; its password is generated where there is no file yet."""

    def __init__(self, path: Path, text: str, *, new: bool) -> None:
        self.path = path
        self.new = new
        """It is not on the disk yet."""
        self._text = text

    def __repr__(self) -> str:
        return f"<RoleFile {self.path}>"

    @classmethod
    def of(cls, path: str, role: str, admin: Connection) -> Self:
        """Read the file, or think out what belongs into it: the administrator's server and database.

        Raises:
            ConfigurationError: it cannot be read, or is for another role or without a password.

        """
        try:
            found = Path(path).exists()
        except OSError as error:  # a folder on the way is closed to us
            raise ConfigurationError(f"{_NAME}: {path} cannot be read: {error.strerror}") from error
        if not found:
            given = parse_dsn(admin.dsn)
            known = {"host": admin.info.host, "port": str(admin.info.port)}
            server = known | {name: given[name] for name in _KEPT if name in given}
            text = make_dsn(**server, dbname=admin.info.dbname, user=role, password=secrets.token_urlsafe(24))
            return cls(Path(path), text, new=True)
        text = ConnectionString(_NAME, file=path).read()
        fields = parse_dsn(text)
        if fields.get("user") != role or not fields.get("password"):
            raise ConfigurationError(
                f"{_NAME}: {path} must hold a connection string with user={role} and a password"
            )
        return cls(Path(path), text, new=False)

    @property
    def password(self) -> str:
        """The secret."""
        return str(parse_dsn(self._text)["password"])

    def works(self) -> bool:
        """Tell whether one can connect with it as it is. Blocks for up to 5 s."""
        if self.new:
            return False
        try:
            psycopg2.connect(self._text, connect_timeout=5).close()
        except psycopg2.Error:  # whatever it is, setting the password again does no harm
            return False
        return True

    def write(self) -> None:
        """Put it on the disk, readable for us alone, before the server hears of it: no password gets lost.

        Raises:
            PadsCdcError: it cannot be written.

        """
        if not self.new:
            return
        try:
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self._text + "\n")
        except OSError as error:
            raise PadsCdcError(
                f"{_NAME}: cannot write {self.path} ({error.strerror}); nothing was done"
            ) from error
        self.new = False
