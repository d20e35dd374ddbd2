"""The encoding of a database: converts between the bytes that the server stores and text.

The server is never asked to convert to UTF-8. wal2json does not convert, and otherwise a single value without
an equivalent in UTF-8 would end the stream, or make the read of all rows fail. So bytes are decoded here,
value by value, by rules that agree with Postgres' own conversion (`tests/cdc/postgres/test_encoding.py`
compares them character by character).

A *key* is text with which a row is found again, so it must be sent back as the same bytes. Bytes that are not
valid text are kept in a key as surrogates, as Python does with file names.
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
    "SQL_ASCII": "utf-8",  # it stores any bytes, and does not say which encoding they are in
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
"""Python's names of the encodings that a server can have. Python has no codec for EUC_TW and MULE_INTERNAL.
"""

_POSTGRES_READS: Final[Mapping[str, tuple[str, str]]] = {
    "EUC_JP": ("〜‖\u2212¢£¬¦", "\uff5e∥\uff0d￠￡￢￤"),
    "EUC_JIS_2004": ("￣―￥⦅⦆", "‾—¥｟｠"),
}
"""Python and Postgres decode some bytes to different characters. These are Python's characters, and in the
same order Postgres' characters.
"""


@dataclass(frozen=True)
class Encoding:
    """An encoding that a server can have. It includes ASCII, and different values never decode to the same
    text.
    """

    name: str
    """Its name in Postgres."""
    _codec: str = field(repr=False)
    _to_postgres: Mapping[int, int] = field(default_factory=dict, repr=False)
    _to_python: Mapping[int, int] = field(default_factory=dict, repr=False)

    @classmethod
    def named(cls, name: str) -> Encoding:
        """Return the encoding that ``SHOW server_encoding`` names.

        Raises:
            Refusal: Python cannot decode it.

        """
        codec = _CODECS.get(name)
        if codec is None:
            raise Refusal(
                f"the database is in the encoding {name}, which cannot be decoded; copy it (pg_dump) into one"
                " with the encoding UTF8"
            )
        pythons, postgres = _POSTGRES_READS.get(name, ("", ""))
        return cls(name, codec, str.maketrans(pythons, postgres), str.maketrans(postgres, pythons))

    @classmethod
    def of(cls, connection: Connection) -> Encoding:
        """Return the encoding of a connection's database. No query is needed, since the server reports it
        when the connection is opened.

        Raises:
            Refusal: Python cannot decode it.

        """
        return cls.named(connection.info.parameter_status("server_encoding") or "UTF8")

    @property
    def utf8(self) -> bool:
        """Whether it is UTF-8, so that nothing has to be converted."""
        return self.name == "UTF8"

    def text(self, raw: bytes) -> str:
        """Decode a value.

        Raises:
            UnicodeDecodeError: the bytes are not valid text. The error contains them: never log it.

        """
        if raw.isascii():
            return raw.decode("ascii")
        text = raw.decode(self._codec)
        # Python decodes several byte sequences to the same character; Postgres accepts only one of them.
        if text.encode(self._codec) != raw:
            raise UnicodeDecodeError(self._codec, raw, 0, len(raw), "another sequence stands for this")
        return text.translate(self._to_postgres) if self._to_postgres else text

    def in_utf8(self, value: Any) -> Any:
        """Convert a value, or a list of values. Bytes that are not valid text become invalid UTF-8."""
        if isinstance(value, bytes) and not value.isascii():
            try:
                return self.text(value).encode()
            except UnicodeDecodeError:
                return b"\xff" + value
        return [self.in_utf8(one) for one in value] if isinstance(value, list) else value

    def key(self, raw: bytes) -> str:
        """Decode a value in such a way that `raw` returns the same bytes, even if they are not valid text."""
        try:
            return self.text(raw)
        except UnicodeDecodeError:
            return raw.decode("ascii", _ESCAPED)

    def array(self, keys: Iterable[str]) -> str:
        """Write keys as an SQL array in ASCII, which is the same in every client encoding."""
        return f"ARRAY[{', '.join(map(self._literal, keys))}]::TEXT[]"

    def _literal(self, key: str) -> str:
        bytes_of_key = "".join(chr(byte) if byte in _AS_IT_IS else f"\\x{byte:02x}" for byte in self.raw(key))
        return f"E'{bytes_of_key}'"

    def raw(self, key: str) -> bytes:
        """Return the bytes that the database stores for a key.

        Raises:
            UnicodeEncodeError: no value of this database can be equal to the key.

        """
        return key.translate(self._to_python).encode(self._codec, _ESCAPED)
