"""The server's certificate with its key, and the authorities whose clients may connect.

gRPC accepts any file, and then fails at each handshake. So this module checks the files before they are used,
and reports an error in one line.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import grpc
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from cdc.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

CERTIFICATE = "TLS_CERT_FILE"
KEY = "TLS_KEY_FILE"
CLIENT_CA = "TLS_CLIENT_CA_FILE"

_BEGIN = b"-----BEGIN CERTIFICATE-----"


@dataclass(frozen=True)
class Certificates:
    """The certificate, the key and the authorities for new handshakes."""

    configuration: grpc.ServerCertificateConfiguration = field(repr=False)
    expires: float
    """The time at which the server's own certificate expires, in Unix seconds."""

    def lapsed(self, now: float) -> str | None:
        """Return an error if the certificate has expired, otherwise None."""
        return _over(self.expires) if now > self.expires else None


def judge(contents: tuple[bytes, ...], now: Callable[[], float] = time.time) -> Certificates:
    """Check the contents of the two or three files. The third file is ``TLS_CLIENT_CA_FILE``.

    Raises:
        ConfigurationError: a file is not valid. The text names the setting, and quotes no content.

    """
    chain, key, *authorities = contents
    certificate = _certificates(CERTIFICATE, chain)[0]
    _in_force(certificate, now())
    if _public(_private(key)) != _public(certificate):
        raise ConfigurationError(
            f"{KEY}: is not the key of the first certificate in {CERTIFICATE}; give two that belong together"
        )
    for content in authorities:
        _certificates(CLIENT_CA, content)
    configuration = grpc.ssl_server_certificate_configuration(
        [(key, chain)], root_certificates=authorities[0] if authorities else None
    )
    return Certificates(configuration, certificate.not_valid_after_utc.timestamp())


def credentials(current: Callable[[], Certificates], *, clients_need_one: bool) -> grpc.ServerCredentials:
    """Return credentials that use ``current()`` for each new connection. Open connections keep theirs."""
    given = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # gRPC calls this before each handshake, in its own threads, one at a time. None means "unchanged".
        nonlocal given
        latest = current()
        if latest is given:
            return None
        given = latest
        return latest.configuration

    return grpc.dynamic_ssl_server_credentials(
        given.configuration,
        fetch,  # type: ignore[arg-type] # the stubs forget None
        require_client_authentication=clients_need_one,
    )


def _certificates(setting: str, content: bytes) -> list[x509.Certificate]:
    try:
        found = x509.load_pem_x509_certificates(content)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        found = []
    # The library ignores a truncated certificate, such as the last one of a file that is being written.
    if not found or len(found) < content.count(_BEGIN):
        raise ConfigurationError(
            f"{setting}: the file's content is not one or more PEM certificates ({_BEGIN.decode()})"
        )
    return found


def _private(content: bytes) -> PrivateKeyTypes:
    try:
        return load_pem_private_key(content, password=None)
    except TypeError:
        raise ConfigurationError(f"{KEY}: the key is encrypted; give it without a passphrase") from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigurationError(
            f"{KEY}: the file's content is not a PEM private key (-----BEGIN PRIVATE KEY-----)"
        ) from None


def _in_force(certificate: x509.Certificate, now: float) -> None:
    begins = certificate.not_valid_before_utc.timestamp()
    expires = certificate.not_valid_after_utc.timestamp()
    if now < begins:
        raise ConfigurationError(
            f"{CERTIFICATE}: the certificate begins at {_date(begins)}; is the clock right?"
        )
    if now > expires:
        raise ConfigurationError(_over(expires))


def _public(holder: x509.Certificate | PrivateKeyTypes) -> bytes:
    return holder.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _over(expires: float) -> str:
    return f"{CERTIFICATE}: the certificate expired at {_date(expires)}; renew it"


def _date(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
