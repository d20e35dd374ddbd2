"""The encoding of a database: bytes as the server holds them, and the text that they are.

Neither the slot nor the re-queries let the server convert to UTF-8: wal2json never does, and elsewhere one
value that has no equivalent would end the stream, or the read of every row. So bytes are decoded here, value
by value, by rules that agree with Postgres' own conversion (`tests/cdc/postgres/test_encoding.py` compares
them character by character).

A *key* is text that finds a row again. It has to be the same bytes when it is sent back, so bytes that are no
text are kept in it as surrogates, as Python keeps file names.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from cdc.errors import Refusal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from psycopg2.extensions import connection as Connection  # noqa: N812 - it is a class

_AS_IT_IS: Final = frozenset((string.ascii_letters + string.digits + "_-. ").encode())
_ESCAPED: Final = "surrogateescape"

_CODECS: Final[Mapping[str, str]] = {
    "UTF8": "utf-8",
    "SQL_ASCII": "utf-8",  # any bytes at all, by definition; text in anything else is nobody's to guess
    "EUC_JP": "euc_jp",
    "EUC_CN": "gb2312",
    "EUC_KR": "euc_kr",
    "EUC_JIS_2004": "euc_jis_2004",
    **{
        f"LATIN{number}": f"iso8859_{part}"
        for number, part in enumerate((1, 2, 3, 4, 9, 10, 13, 14, 15, 16), 1)
    },
    **{f"ISO_8859_{part}": f"iso8859_{part}" for part in (5, 6, 7, 8)},
    **{
        f"WIN{page}": f"cp{page}" for page in (866, 874, 1250, 1251, 1252, 1253, 1254, 1255, 1256, 1257, 1258)
    },
    "KOI8R": "koi8_r",
    "KOI8U": "koi8_u",
}
"""What Python calls the encodings that a server can have. It has no codec for EUC_TW and MULE_INTERNAL."""

_POSTGRES_READS: Final[Mapping[str, tuple[str, str]]] = {
    "EUC_JP": ("〜‖\u2212¢£¬¦", "\uff5e∥\uff0d￠￡￢￤"),
    "EUC_JIS_2004": ("￣―￥⦅⦆", "‾—¥｟｠"),
}
"""Characters that Python and Postgres take the same bytes for: Python's, and Postgres'."""


@dataclass(frozen=True)
class Encoding:
    """One of a server's encodings; ASCII is part of each. No value decodes to the text of another one."""

    name: str
    """As Postgres has it."""
    _codec: str = field(repr=False)
    _to_postgres: Mapping[int, int] = field(default_factory=dict, repr=False)
    _to_python: Mapping[int, int] = field(default_factory=dict, repr=False)

    @classmethod
    def named(cls, name: str) -> Encoding:
        """Return the encoding that ``SHOW server_encoding`` names.

        Raises:
            Refusal: it cannot be decoded.

        """
        codec = _CODECS.get(name)
        if codec is None:
            raise Refusal(
                f"the database is in the encoding {name}, which cannot be decoded; copy it (pg_dump) into one"
                " that is in UTF8"
            )
        pythons, postgres = _POSTGRES_READS.get(name, ("", ""))
        return cls(name, codec, str.maketrans(pythons, postgres), str.maketrans(postgres, pythons))

    @classmethod
    def of(cls, connection: Connection) -> Encoding:
        """Return the encoding of the database that a connection is to. Asks nobody: the server has said it.

        Raises:
            Refusal: it cannot be decoded.

        """
        return cls.named(connection.info.parameter_status("server_encoding") or "UTF8")

    @property
    def utf8(self) -> bool:
        """Whether it is UTF-8, in which nothing has to be converted."""
        return self.name == "UTF8"

    def text(self, raw: bytes) -> str:
        """Decode a value.

        Raises:
            UnicodeDecodeError: these bytes are no text. The error holds them: let it go no further.

        """
        if raw.isascii():
            return raw.decode("ascii")
        text = raw.decode(self._codec)
        # Python reads some characters from more than one sequence of bytes; Postgres knows one of them.
        if text.encode(self._codec) != raw:
            raise UnicodeDecodeError(self._codec, raw, 0, len(raw), "another sequence stands for this")
        return text.translate(self._to_postgres) if self._to_postgres else text

    def in_utf8(self, value: Any) -> Any:
        """Convert what a column holds, a list too. What is no text becomes bytes that are none in UTF-8."""
        if isinstance(value, bytes) and not value.isascii():
            try:
                return self.text(value).encode()
            except UnicodeDecodeError:
                return b"\xff" + value
        return [self.in_utf8(one) for one in value] if isinstance(value, list) else value

    def key(self, raw: bytes) -> str:
        """Decode a value so that `raw` gives these very bytes again, whatever they are."""
        try:
            return self.text(raw)
        except UnicodeDecodeError:
            return raw.decode("ascii", _ESCAPED)

    def array(self, keys: Iterable[str]) -> str:
        """Write keys as an SQL array in ASCII, which no client encoding changes."""
        return f"ARRAY[{', '.join(map(self._literal, keys))}]::TEXT[]"

    def _literal(self, key: str) -> str:
        bytes_of_key = "".join(chr(byte) if byte in _AS_IT_IS else f"\\x{byte:02x}" for byte in self.raw(key))
        return f"E'{bytes_of_key}'"

    def raw(self, key: str) -> bytes:
        """Return the bytes that the database holds for a key.

        Raises:
            UnicodeEncodeError: it holds none: no value of this database is that text.

        """
        return key.translate(self._to_python).encode(self._codec, _ESCAPED)
