# SPDX-License-Identifier: Apache-2.0
"""Certificates that image signatures are checked with: where they come from, and whether to believe them."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from storelib.api.context import Context
from storelib.api.errors import BadRequest
from storelib.api.schemas import is_certificate_id
from storelib.api.service.keys import KeyManager, KeyManagerFailed
from storelib.exceptions import BadStoreConfiguration

#: Bytes of a file of a certificate at most.
LARGEST = 64 * 1024


class Certificates:
    """Certificates by id: those of the key manager, where there is one, or else of files ``<id>.pem`` in a directory.

    ``trusted`` are the ids of those that may have issued others; with none of them every certificate that is there is
    believed. Raises BadStoreConfiguration for a directory that is none.
    """

    def __init__(self, keys: KeyManager | None, directory: str | None, trusted: Sequence[str]) -> None:
        self._keys = keys
        self._directory = directory
        self._trusted = trusted
        if directory and not os.path.isdir(directory):
            raise BadStoreConfiguration(f"[api] signature_certificates_dir: {directory} is not a directory")
        for name in trusted:
            if not is_certificate_id(name):
                raise BadStoreConfiguration(f"[api] default_trusted_certificate_ids: {name[:80]!r} is not a UUID")

    def find(self, context: Context, name: str) -> x509.Certificate:
        """The certificate with this id.

        Raises BadRequest where there is none for this caller, or it is not valid now, or no trusted one issued it.
        """
        found = self._read(context, name)
        if not _is_valid_now(found):
            raise BadRequest(f"the certificate {name} is not valid now")
        if self._trusted:
            self._check_issuers(context, name, found)
        return found

    def _read(self, context: Context, name: str) -> x509.Certificate:
        # An id of another form might be a path.
        if not is_certificate_id(name):
            raise BadRequest(f"{name[:80]!r} is not the id of a certificate, which is a UUID")
        try:
            if self._keys is not None:
                return x509.load_der_x509_certificate(self._keys.certificate(context, name))
            if self._directory is None:
                raise BadRequest("signatures of images cannot be checked here: no certificates are configured")
            with open(os.path.join(self._directory, f"{name}.pem"), "rb") as file:
                return x509.load_pem_x509_certificate(file.read(LARGEST))
        except (KeyManagerFailed, OSError) as error:
            raise BadRequest(f"there is no certificate {name} for this caller") from error
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise BadRequest(f"the certificate {name} cannot be read") from error

    def _check_issuers(self, context: Context, name: str, found: x509.Certificate) -> None:
        """Raise BadRequest unless trusted certificates lead from this one to one that issued itself."""
        issuers = self._issuers(context)
        below = 0
        # Each of them may be in the chain once, so that the chain ends.
        while True:
            issuer = next((issuer for issuer in issuers if _issued(issuer, found)), None)
            if issuer is None:
                raise BadRequest(f"no trusted certificate has issued the certificate {name}")
            if issuer == found:
                return
            if not _allows(issuer, below):
                raise BadRequest(f"the certificate {name} is further below a trusted one than that allows")
            issuers.remove(issuer)
            if _issued(issuer, issuer):
                return
            found, below = issuer, below + 1

    def _issuers(self, context: Context) -> list[x509.Certificate]:
        """The trusted ones that may issue certificates now."""
        found = []
        for name in self._trusted:
            try:
                certificate = self._read(context, name)
            except BadRequest:
                continue
            if _is_valid_now(certificate) and _may_issue(certificate):
                found.append(certificate)
        return found


def _is_valid_now(certificate: x509.Certificate) -> bool:
    now = datetime.datetime.now(datetime.timezone.utc)
    return certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc


def _may_issue(certificate: x509.Certificate) -> bool:
    """Whether it says of itself that it is an authority's."""
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    except (x509.ExtensionNotFound, ValueError):
        return False
    return constraints.ca and usage.key_cert_sign


def _allows(issuer: x509.Certificate, below: int) -> bool:
    """Whether so many authorities may stand between ``issuer`` and the certificate."""
    longest = issuer.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    return longest is None or below <= longest


def _issued(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True
