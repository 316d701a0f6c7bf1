# SPDX-License-Identifier: Apache-2.0
"""A backend of Castellan in memory, of which each project has its own secrets; and certificates to put into it."""

from __future__ import annotations

import base64
import datetime
import uuid
from typing import Any, ClassVar

from castellan.common import exception
from castellan.common.objects import x_509
from castellan.key_manager.key_manager import KeyManager
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, padding, rsa
from cryptography.x509.oid import NameOID

HASHES = {
    "SHA-224": hashes.SHA224(),
    "SHA-256": hashes.SHA256(),
    "SHA-384": hashes.SHA384(),
    "SHA-512": hashes.SHA512(),
}


class Memory(KeyManager):
    """Secrets by project and id, of the whole process."""

    secrets: ClassVar[dict[tuple[str, str], Any]] = {}
    #: Raised by every call, where it is set.
    trouble: ClassVar[Exception | None] = None

    def __init__(self, configuration: Any) -> None:
        pass

    def _of(self, context: Any, name: str) -> tuple[str, str]:
        if self.trouble is not None:
            raise self.trouble
        if (context.project_id, name) not in self.secrets:
            raise exception.ManagedObjectNotFoundError(uuid=name)
        return context.project_id, name

    def get(self, context: Any, managed_object_id: str, metadata_only: bool = False) -> Any:
        return self.secrets[self._of(context, managed_object_id)]

    def delete(self, context: Any, managed_object_id: str, force: bool = False) -> None:
        del self.secrets[self._of(context, managed_object_id)]

    def store(self, context: Any, managed_object: Any, expiration: Any = None) -> str:
        name = str(uuid.uuid4())
        self.secrets[context.project_id, name] = managed_object
        return name

    def create_key(self, *arguments: Any, **options: Any) -> Any:
        raise NotImplementedError

    create_key_pair = add_consumer = remove_consumer = create_key  # type: ignore[assignment]


class Signer:
    """A key with its certificate, issued by ``issuer`` or by itself; key and name may be those of another one."""

    def __init__(
        self,
        kind: str = "RSA-PSS",
        *,
        issuer: Signer | None = None,
        authority: bool = False,
        path_length: int | None = None,
        days: tuple[int, int] = (-1, 1),
        like: Signer | None = None,
    ) -> None:
        self.id = str(uuid.uuid4())
        self.kind = kind
        self.key: Any
        if like is not None:
            self.key = like.key
        elif kind == "RSA-PSS":
            self.key = rsa.generate_private_key(65537, 2048)
        elif kind == "DSA":
            self.key = dsa.generate_private_key(1024)
        else:
            self.key = ec.generate_private_key(getattr(ec, kind.removeprefix("ECC_"))())
        now = datetime.datetime.now(datetime.timezone.utc)
        self.name = like.name if like else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.id)])
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name if issuer else self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=days[0]))
            .not_valid_after(now + datetime.timedelta(days=days[1]))
        )
        if authority:
            usage = dict.fromkeys(
                (
                    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                    *("key_agreement", "crl_sign", "encipher_only", "decipher_only"),
                ),
                False,
            )
            builder = builder.add_extension(x509.BasicConstraints(True, path_length), critical=True)
            builder = builder.add_extension(x509.KeyUsage(key_cert_sign=True, **usage), critical=True)
        self.certificate = builder.sign((issuer or self).key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def keep(self, project: str) -> Signer:
        """Put the certificate into the key manager."""
        encoded = self.certificate.public_bytes(serialization.Encoding.DER)
        Memory.secrets[project, self.id] = x_509.X509(encoded)
        return self

    def sign(self, data: bytes, method: str = "SHA-256", *, salt: int | None = None) -> dict[str, str]:
        """The properties of an image with this data."""
        digest = HASHES[method]
        if self.kind == "RSA-PSS":
            length = padding.PSS.MAX_LENGTH if salt is None else salt
            signature = self.key.sign(data, padding.PSS(padding.MGF1(digest), length), digest)
        elif self.kind == "DSA":
            signature = self.key.sign(data, digest)
        else:
            signature = self.key.sign(data, ec.ECDSA(digest))
        return {
            "img_signature": base64.b64encode(signature).decode(),
            "img_signature_hash_method": method,
            "img_signature_key_type": self.kind,
            "img_signature_certificate_uuid": self.id,
        }
