"""The server's certificate with its key, and the authorities whose clients are let in.

gRPC would take what it is given and fail at each handshake. So everything is judged before it is served, and
what is wrong is said in one line.
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
    """What handshakes are made with from now on."""

    configuration: grpc.ServerCertificateConfiguration = field(repr=False)
    expires: float
    """Unix seconds at which the server's own certificate ends."""

    def lapsed(self, now: float) -> str | None:
        """Say that clients refuse the certificate by now; None while they do not."""
        return _over(self.expires) if now > self.expires else None


def judge(contents: tuple[bytes, ...], now: Callable[[], float] = time.time) -> Certificates:
    """Make certificates of the contents of the three files; the last one, ``TLS_CLIENT_CA_FILE``, may lack.

    Raises:
        ConfigurationError: they are not good; the text names the setting and holds nothing of the content.

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
    """Return credentials that serve each new connection with what ``current`` returns; open ones go on."""
    given = current()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        # Before each handshake, on a thread of gRPC's, one at a time; None stands for "as before".
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
    # The library passes over one that is cut off, as the last one is while the file is being written.
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
