"""Seals the messages that a broker stores: AES-256-GCM under keys that the broker's operator does not have.

A sealed message is a version byte, the first 8 bytes of the key's SHA-256, a nonce of 12 bytes, and the
ciphertext with its tag. The tag also authenticates the subject, so a page cannot be moved to another stream.
Nonces are random. After 2^32 messages with one key (more than a year at 100 messages a second), two nonces
are equal with a probability of 2^-32. So change keys once a year.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import os
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cdc.errors import ConfigurationError, PadsCdcError
from server.security.reloaded import Reloaded, read_file

if TYPE_CHECKING:
    from pathlib import Path

    from cdc.observer import Observer

SETTING: Final = "BROKER_SEAL_FILE"
TROUBLE: Final = "broker_seal"
LOOK_SECONDS: Final = 1.0
"""Interval, in seconds, at which leader and relays read the file. New content is used once two reads have
found it.
"""
_VERSION: Final = b"\x01"
_KEY_BYTES: Final = 32
_ID_BYTES: Final = 8
_NONCE_BYTES: Final = 12
_HEAD_BYTES: Final = 1 + _ID_BYTES + _NONCE_BYTES


class SealError(PadsCdcError):
    """A message cannot be opened. The text gives the reason, and quotes no part of the message."""


class Seal:
    """Seals with the first key of a file, and opens with any of its keys.

    Without a file, messages stay unchanged.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file.

        Raises:
            ConfigurationError: the file cannot be read, or contains no keys.

        """
        self._keys: Reloaded[dict[bytes, AESGCM]] | None = None
        if path is not None:
            self._keys = Reloaded(lambda: (read_file(SETTING, path, secret=True),), _keys)

    async def look(self, observer: Observer) -> None:
        """Read the file again.

        If its new content cannot be used, report an error and keep the current keys.
        """
        if self._keys is not None:
            await asyncio.to_thread(self._keys.look)
            observer.trouble(TROUBLE, self._keys.fault)

    def seal(self, subject: str, content: bytes) -> bytes:
        """Return the sealed content to store."""
        if self._keys is None:
            return content
        key_id, key = next(iter(self._keys.value.items()))
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + key_id + nonce + key.encrypt(nonce, content, subject.encode())

    def open(self, subject: str, stored: bytes) -> bytes:
        """Return the content of a sealed message.

        Raises:
            SealError: the message is sealed with a key that we do not have, or is not sealed although it
            should be.

        """
        sealed = stored[:1] == _VERSION
        if self._keys is None:
            if sealed:
                raise SealError(f"the stream is sealed: set {SETTING} to a file with the leader's key")
            return stored
        key = self._keys.value.get(stored[1 : 1 + _ID_BYTES]) if sealed else None
        if key is None:
            what = f"a key that {SETTING} does not have" if sealed else "no key at all"
            raise SealError(f"the stream is sealed with {what}: give leader and relays the same keys")
        nonce = stored[1 + _ID_BYTES : _HEAD_BYTES]
        try:
            return key.decrypt(nonce, stored[_HEAD_BYTES:], subject.encode())
        except InvalidTag:
            raise SealError("a message of the stream was changed after it was sealed") from None


def _keys(contents: tuple[bytes, ...]) -> dict[bytes, AESGCM]:
    keys = {}
    for number, line in enumerate(contents[0].decode("ascii", "replace").splitlines(), start=1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        try:
            key = base64.b64decode(text, validate=True)
        except binascii.Error:
            key = b""
        if len(key) != _KEY_BYTES:
            raise ConfigurationError(
                f"{SETTING}: line {number} is not {_KEY_BYTES} bytes in base64; make one with:"
                f" head -c {_KEY_BYTES} /dev/urandom | base64"
            )
        keys[hashlib.sha256(key).digest()[:_ID_BYTES]] = AESGCM(key)
    if not keys:
        raise ConfigurationError(
            f"{SETTING}: the file holds no key; make one with: head -c {_KEY_BYTES} /dev/urandom | base64"
        )
    return keys
