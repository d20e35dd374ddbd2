"""Files that are read again while the server runs: certificates, keys, tokens.

A rotation may write in place, replace one file after the other, or be interrupted. So new content is used
only if it is valid and two reads in a row have found it. Until then the old content stays in use.
"""

from __future__ import annotations

import hashlib
import shlex
import stat
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from cdc.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

T = TypeVar("T")

_MAX_BYTES: Final = 1024 * 1024


class Reloaded(Generic[T]):
    """A value made from files. ``value`` is the last valid value. ``fault`` is the reason why the files'
    current content is not used, or None.
    """

    def __init__(
        self, read: Callable[[], tuple[bytes, ...]], judge: Callable[[tuple[bytes, ...]], T]
    ) -> None:
        """Read the first value. Blocks on the disk.

        Raises:
            ConfigurationError: the files are not valid. The text is one line and quotes no content.

        """
        self._read = read
        self._judge = judge
        contents = read()
        self.value: T = judge(contents)
        self.fault: str | None = None
        self._taken = self._seen = _fingerprint(contents)

    def look(self) -> bool:
        """Read the files again, and return whether the value has changed. Blocks on the disk."""
        try:
            contents = self._read()
        except ConfigurationError as error:
            if self._settled(str(error)):
                self.fault = str(error)
            return False
        found = _fingerprint(contents)
        if not self._settled(found):
            return False
        if found == self._taken:
            self.fault = None
            return False
        try:  # unused content is judged again each time, since a certificate may become valid
            value = self._judge(contents)
        except ConfigurationError as error:
            self.fault = str(error)
            return False
        self.value, self.fault, self._taken = value, None, found
        return True

    def _settled(self, found: str) -> bool:
        before, self._seen = self._seen, found
        return before == found


def read_file(setting: str, path: Path, *, secret: bool = False) -> bytes:
    """Return a file's content. Blocks on the disk.

    Raises:
        ConfigurationError: the file cannot be read, or it is ``secret`` and every user may read it.

    """
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):  # a pipe could block, and would return its content only once
            raise ConfigurationError(f"{setting}: {path} is not a file")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ConfigurationError(f"{setting}: {path} cannot be read: {error.strerror}") from None
    if len(content) > _MAX_BYTES:
        raise ConfigurationError(f"{setting}: {path} is larger than 1 MiB, which is not what it should be")
    if secret and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ConfigurationError(
            f"{setting}: {path} is open to everybody on this machine; chmod o= {shlex.quote(str(path))}"
        )
    return content


def _fingerprint(contents: tuple[bytes, ...]) -> str:
    """Return a hash of the contents, so that they can be compared without keeping secrets in memory."""
    digest = hashlib.sha256()
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()
