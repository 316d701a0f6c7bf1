# SPDX-License-Identifier: Apache-2.0
"""Signatures of images: four properties say what was signed by whom, and data that does not fit them is not taken.

The signature is of a digest, which is computed beside the others while the data passes.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa, utils

from storelib.api.context import Context
from storelib.api.errors import BadRequest
from storelib.api.schemas import CURVES, SIGNATURE
from storelib.api.service.certificates import Certificates
from storelib.transfer.contract import Digests
from storelib.transfer.digests import new_hasher

_HASHES: Mapping[str, tuple[str, hashes.HashAlgorithm]] = {
    "SHA-224": ("sha224", hashes.SHA224()),
    "SHA-256": ("sha256", hashes.SHA256()),
    "SHA-384": ("sha384", hashes.SHA384()),
    "SHA-512": ("sha512", hashes.SHA512()),
}


class _Said(NamedTuple):
    """What the properties of an image say, in the order of ``SIGNATURE``."""

    signature: str
    method: str
    kind: str
    certificate: str


class Signature:
    """The signature that the data of one image has to have; ``update`` is given every byte of it, in order."""

    def __init__(self, said: _Said, certificate: x509.Certificate) -> None:
        if said.method not in _HASHES:
            raise BadRequest(f"img_signature_hash_method {said.method[:80]!r} is not one of {', '.join(_HASHES)}")
        self._signature = _decoded(said.signature)
        self._kind = said.kind
        self._name, self._algorithm = _HASHES[said.method]
        self._key = _key(certificate, said.kind)
        self._hasher = new_hasher(self._name)

    def begin(self) -> None:
        """Begin anew, since the data is read once more."""
        self._hasher = new_hasher(self._name)

    def update(self, chunk: bytes, /) -> None:
        """Take the next bytes."""
        self._hasher.update(chunk)

    def check(self, digests: Digests | None = None) -> None:
        """After the last byte: raise BadRequest unless this is the signature of the data; needs no ``digests``."""
        digest = bytes.fromhex(self._hasher.hexdigest())
        try:
            self._verify(digest, utils.Prehashed(self._algorithm))
        except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadRequest("the signature of the image is not that of its data") from error

    def _verify(self, digest: bytes, algorithm: utils.Prehashed) -> None:
        if isinstance(self._key, rsa.RSAPublicKey):
            # Signers differ in how much salt they take, which is no part of what is said.
            scheme = padding.PSS(padding.MGF1(self._algorithm), padding.PSS.AUTO)
            self._key.verify(self._signature, digest, scheme, algorithm)
        elif isinstance(self._key, dsa.DSAPublicKey):
            self._key.verify(self._signature, digest, algorithm)
        else:
            self._key.verify(self._signature, digest, ec.ECDSA(algorithm))


class Signatures:
    """Finds out what signature an image has to have."""

    def __init__(self, certificates: Certificates) -> None:
        self._certificates = certificates

    def of(self, context: Context, properties: Mapping[str, str | None]) -> Signature | None:
        """The signature that the properties of an image ask for; None for an image without one.

        Raises BadRequest for what cannot be one: some of the four properties only, an unknown method or kind, a
        certificate that is not there, not valid, not trusted, or has a key of another kind.
        """
        given = {name: value for name in SIGNATURE if (value := properties.get(name)) is not None}
        if not given:
            return None
        if missing := [name for name in SIGNATURE if name not in given]:
            raise BadRequest(f"the signature of the image is not complete: it has no {', '.join(missing)}")
        said = _Said(*(given[name] for name in SIGNATURE))
        return Signature(said, self._certificates.find(context, said.certificate))


def check_unsigned(properties: Mapping[str, str | None]) -> None:
    """Raise BadRequest for an image with a signature that is about to get data of which not every byte is read."""
    if any(properties.get(name) is not None for name in SIGNATURE):
        raise BadRequest("an image with a signature gets its data by an upload, an import or POST /locations")


def _decoded(text: str) -> bytes:
    try:
        # Programs that write base64 break its lines.
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("img_signature is not base64") from error


def _key(certificate: x509.Certificate, kind: str) -> rsa.RSAPublicKey | dsa.DSAPublicKey | ec.EllipticCurvePublicKey:
    """The certificate's key; raises BadRequest unless it is of the kind that was said."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadRequest("the key in the certificate is of no known kind") from error
    if kind == "RSA-PSS" and isinstance(key, rsa.RSAPublicKey):
        return key
    if kind == "DSA" and isinstance(key, dsa.DSAPublicKey):
        return key
    if kind in CURVES and isinstance(key, ec.EllipticCurvePublicKey) and f"ECC_{key.curve.name.upper()}" == kind:
        return key
    raise BadRequest(f"the key in the certificate is not of the kind {kind[:80]}")
