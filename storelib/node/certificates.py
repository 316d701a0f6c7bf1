# SPDX-License-Identifier: Apache-2.0
"""The key of a node for one job, and the request for the certificate that other nodes of the job want to see."""

from __future__ import annotations

import functools

from storelib.extras import needing

_imports = functools.partial(needing, "exchanging images between nodes", "node")


def new_key() -> str:
    """A private key, in PEM, that never leaves the node; raises MissingDependency."""
    with _imports():
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def request(key: str, node: str, torrent_name: str) -> str:
    """A certificate signing request in PEM, whose alternative name is the torrent's: libtorrent wants to see that.

    Raises MissingDependency, and ValueError or TypeError for a key that is none of ours.
    """
    with _imports():
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
        from cryptography.x509.oid import NameOID

    private = load_pem_private_key(key.encode(), None)
    if not isinstance(private, EllipticCurvePrivateKey):
        raise TypeError("the key is not one of ours")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node[:64])])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(torrent_name)]), critical=False)
    return builder.sign(private, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def validity(certificate: str) -> tuple[float, float]:
    """From when to when a certificate is valid, in seconds since the epoch.

    Raises MissingDependency, and ValueError for what is none.
    """
    with _imports():
        from cryptography import x509

    found = x509.load_pem_x509_certificate(certificate.encode())
    return found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
