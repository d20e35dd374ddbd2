"""The file with the connection string of the service's role. `setup` writes it; `serve` and `check` read it.

The password is never shown. It is stored only in this file (mode 0600), and in the server as a SCRAM
verifier.
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
"""Parameters of the administrator's connection string that describe the server, not the administrator."""
_NAME = "--role-file"


class RoleFile:
    """The connection string of one role. If there is no file yet, a password is generated."""

    def __init__(self, path: Path, text: str, *, new: bool) -> None:
        self.path = path
        self.new = new
        """Whether the file does not exist yet."""
        self._text = text

    def __repr__(self) -> str:
        return f"<RoleFile {self.path}>"

    @classmethod
    def of(cls, path: str, role: str, admin: Connection) -> Self:
        """Read the file, or make a connection string for the administrator's server and database.

        Raises:
            ConfigurationError: the file cannot be read, or it names another role or has no password.

        """
        try:
            found = Path(path).exists()
        except OSError as error:  # we may not enter a folder on the path
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
        """The role's password."""
        return str(parse_dsn(self._text)["password"])

    def works(self) -> bool:
        """Return whether the connection string works. Blocks for up to 5 s."""
        if self.new:
            return False
        try:
            psycopg2.connect(self._text, connect_timeout=5).close()
        except psycopg2.Error:  # the reason does not matter, since setting the password again does no harm
            return False
        return True

    def write(self) -> None:
        """Write the file, readable only by us. This is done before the server gets the password, so that no
        password is lost.

        Raises:
            PadsCdcError: the file cannot be written.

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
