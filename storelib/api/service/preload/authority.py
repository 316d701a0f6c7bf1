# SPDX-License-Identifier: Apache-2.0
"""The authority of one preload, whose certificates tell its nodes from strangers. Its private key is kept sealed."""

from __future__ import annotations

import base64
import datetime
import hashlib
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from storelib.api.errors import BadRequest, Unavailable

#: Characters of a request for a certificate.
LONGEST_REQUEST = 8192
#: A preload may stay for as long as its group is there; its authority is part of what nodes know it by.
_LIFETIME = datetime.timedelta(days=3650)
#: Clocks differ.
_EARLIER = datetime.timedelta(hours=1)
_SEALED = "fernet:"


class Authority(NamedTuple):
    """A certificate in PEM and its sealed private key."""

    certificate: str
    sealed_key: str

    def __repr__(self) -> str:
        return "Authority()"


class Authorities:
    """Makes authorities, and certificates with them. Their keys are sealed with ``key``, if there is one."""

    def __init__(self, key: str | None) -> None:
        made = hashlib.sha256(b"storelib authority of a preload\0" + (key or "").encode()).digest()
        self._fernet = Fernet(base64.urlsafe_b64encode(made)) if key else None

    def make(self, preload_id: str) -> Authority:
        """A new authority for the certificates of one preload."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"storelib preload {preload_id}")])
        moment = datetime.datetime.now(datetime.timezone.utc)
        built = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # Made while the clock was ahead, it could not be used for as long, and no other is made.
            .not_valid_before(moment - _LIFETIME)
            .not_valid_after(moment + _LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        sealed = pem if self._fernet is None else _SEALED + self._fernet.encrypt(pem.encode()).decode()
        return Authority(built.public_bytes(Encoding.PEM).decode(), sealed)

    def issue(
        self, authority: Authority, request: str, node_id: str, image_id: str, lifetime: datetime.timedelta
    ) -> str:
        """A certificate in PEM for the key in a node's request, whatever names the request has in it.

        Raises BadRequest for a request that is none, or of a key that is too weak; Unavailable if the authority's key
        was sealed with another key than this process has.
        """
        wanted = _request(request)
        key = load_pem_private_key(self._unsealed(authority.sealed_key), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)  # noqa: S101
        issuer = x509.load_pem_x509_certificate(authority.certificate.encode())
        moment = datetime.datetime.now(datetime.timezone.utc)
        public = wanted.public_key()
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node_id)]))
            .issuer_name(issuer.subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(moment - _EARLIER)
            .not_valid_after(moment + lifetime)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            # libtorrent looks for the name of the torrent.
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(image_id)]), critical=False)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
                critical=False,
            )
            .sign(key, hashes.SHA256())
            .public_bytes(Encoding.PEM)
            .decode()
        )

    def _unsealed(self, sealed: str) -> bytes:
        if not sealed.startswith(_SEALED):
            return sealed.encode()
        try:
            if self._fernet is not None:
                return self._fernet.decrypt(sealed.removeprefix(_SEALED))
        except InvalidToken:
            pass
        raise Unavailable("the key of this preload cannot be read: [preload] encryption_key is another than it was")


def _request(text: str) -> x509.CertificateSigningRequest:
    if len(text) > LONGEST_REQUEST:
        raise BadRequest(f"a request for a certificate has at most {LONGEST_REQUEST} characters")
    try:
        found = x509.load_pem_x509_csr(text.encode())
        key = found.public_key()
        valid = found.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature) as error:
        raise BadRequest("the request for a certificate is none") from error
    strong = (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.key_size >= 256) or (
        isinstance(key, rsa.RSAPublicKey) and 2048 <= key.key_size <= 4096
    )
    if not valid or not strong:
        raise BadRequest("the request for a certificate is not signed with a key that may have one")
    return found


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=not signs,
        data_encipherment=False,
        key_agreement=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
