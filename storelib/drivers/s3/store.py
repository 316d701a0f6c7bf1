# SPDX-License-Identifier: Apache-2.0
"""S3Store: configuration, and everything but moving bytes."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, TypeVar

from oslo_config import cfg

from storelib.capabilities import Capability
from storelib.driver import Area, Garbage, Health, ImageInfo, Store, web_server
from storelib.drivers.s3.adapting import CHECKSUMS
from storelib.drivers.s3.answers import BadAnswer, listed, names_itself
from storelib.drivers.s3.checksums import PartChecksums
from storelib.drivers.s3.claim import version_of
from storelib.drivers.s3.client import AMAZON_SERVICE, Client
from storelib.drivers.s3.copying import S3Copy
from storelib.drivers.s3.errors import GONE, error_code, storelib_error
from storelib.drivers.s3.location import DEFAULT_PORTS, SCHEMES, S3Location
from storelib.drivers.s3.options import OPTIONS
from storelib.drivers.s3.probing import honours_conditions
from storelib.drivers.s3.reader import S3Reader
from storelib.drivers.s3.writer import S3Writer
from storelib.exceptions import BadStoreConfiguration, BadStoreUri, Invalid, NotFound, OperationNotSupported, StoreError
from storelib.rehearsal import rehearse
from storelib.transfer.retry import mapped
from storelib.uris import ParsedLocation

T = TypeVar("T")

_EVERYBODY = "http://acs.amazonaws.com/groups/global/AllUsers"
#: Signatures of version 4 are valid for a week at most.
_LONGEST_SIGNATURE = 7 * 24 * 3600


class S3Store(Store[S3Location]):
    """Images as objects in one bucket, below a prefix.

    * Of adds racing for one id exactly one succeeds where s3_store_conditional_writes is on, or ``check`` has seen
      that the server honours If-None-Match when an upload is completed. Elsewhere the last of several may win.
    * ``gc`` aborts multipart uploads below the prefix in which nothing happened for ``older_than``, which must be
      longer than one part takes: an add whose upload is aborted fails. It spares those of this very object at any age.
    * ``set_acls`` takes canonical user ids; whoever may write gets full control, since S3 knows nothing less for
      objects. Tenant ``*`` is everybody.
    """

    schemes = SCHEMES
    location_class = S3Location
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = (
        Capability.READ
        | Capability.RANGE
        | Capability.ADD
        | Capability.DELETE
        | Capability.ACLS
        | Capability.LIST
        | Capability.STAT
        | Capability.GC
        | Capability.CHECK
        | Capability.COPY
        | Capability.PRESIGN
    )
    client: Client
    checksums: PartChecksums
    #: What requests that make an object say of it.
    object_settings: dict[str, Any]

    def __init__(self, name: str, conf: Any) -> None:
        super().__init__(name, conf)
        #: Uploads of writers that are still in use, so that gc leaves them alone.
        self.live_uploads: weakref.WeakValueDictionary[str, S3Writer] = weakref.WeakValueDictionary()
        #: Whether PUT carries If-None-Match, and whether the server is known to honour it when an upload is completed.
        self.conditional_put = conf.s3_store_conditional_writes != "off"
        self.conditional_complete = False
        #: Whether completing an upload carries it, known to be honoured or not.
        self.asks_at_completion = self.conditional_put
        #: Whether reading asks for the checksum that the server keeps of an image.
        self.asks_for_checksums = True
        #: Whether all parts of an image must be of one size, but the last.
        self.equal_parts = conf.s3_store_equal_parts == "on"
        self._probed = False

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Where the bucket is and who asks."""
        self.client = Client(self.conf, self.name)
        # Cloudflare's R2 refuses others once all is sent.
        if self.conf.s3_store_equal_parts == "auto" and self.client.host.endswith(".r2.cloudflarestorage.com"):
            self.equal_parts = True
        try:
            self.location("image")
        except BadStoreUri:
            option = "s3_store_key_prefix" if self.conf.s3_store_bucket else "s3_store_bucket"
            raise BadStoreConfiguration(
                f"store {self.name}, option {option}: a bucket's name, and a prefix without '.' and '..' as parts"
            ) from None
        if self.conf.s3_store_conditional_writes == "on":
            self._set_conditional_complete()

    def configure_add(self) -> None:
        """How images are stored."""
        algorithm = self.conf.s3_store_checksum_algorithm
        self.checksums = PartChecksums(CHECKSUMS[0] if algorithm == "auto" else algorithm)
        encryption = self.conf.s3_store_encryption
        if (encryption == "customer") != bool(self.conf.s3_store_customer_key):
            raise BadStoreConfiguration(
                f"store {self.name}: s3_store_encryption = customer and s3_store_customer_key go together"
            )
        if self.conf.s3_store_kms_key_id and not encryption.startswith("aws:kms"):
            raise BadStoreConfiguration(
                f"store {self.name}: s3_store_kms_key_id needs s3_store_encryption = aws:kms or aws:kms:dsse"
            )
        settings = {
            "StorageClass": self.conf.s3_store_storage_class,
            "ServerSideEncryption": None if encryption in ("none", "customer") else encryption,
            "SSEKMSKeyId": self.conf.s3_store_kms_key_id,
        }
        self.object_settings = {key: value for key, value in settings.items() if value} | self.client.customer_key

    def _set_conditional_complete(self) -> None:
        self.conditional_complete = True
        if Capability.ADD in self.capabilities:
            self.capabilities |= Capability.ATOMIC_ADD

    # -- Locations --------------------------------------------------------------------------------------------

    def location(self, image_id: str) -> S3Location:
        """Where the image with this id is, or would be."""
        client, key = self.client, f"{self.conf.s3_store_key_prefix}{image_id}"
        made = S3Location(
            client.scheme, client.host, client.port, self.conf.s3_store_bucket or "", key, base=client.base
        )
        # Parsed again, so that a prefix that makes no URI is found out.
        found = S3Location.parse(made.uri).below(client.base)
        if found is None:
            raise BadStoreUri(f"not a bucket and a key: {made}")
        return found

    def areas(self) -> list[Area]:
        """The keys with the prefix in the bucket; Amazon's buckets have one name in all regions."""
        client = self.client
        amazon = AMAZON_SERVICE.search(client.host)
        server = amazon[1] if amazon else web_server(client.host, client.port)
        option = "s3_store_key_prefix" if self.conf.s3_store_key_prefix else "s3_store_bucket"
        container = ("s3", server, client.base, self.conf.s3_store_bucket)
        return [Area(container, self.conf.s3_store_key_prefix, option)]

    def owns(self, location: S3Location) -> bool:
        """Whether it is in this bucket of this server, below the prefix; http and https are the same server."""
        usual, found = DEFAULT_PORTS[self.client.scheme], location.below(self.client.base)
        return (
            found is not None
            and location.host == self.client.host
            and (location.port or usual) == (self.client.port or usual)
            and found.bucket == self.conf.s3_store_bucket
            and found.key.startswith(self.conf.s3_store_key_prefix)
        )

    def locate(self, location: ParsedLocation | str) -> S3Location:
        """Bucket and key as this store knows them, whose server may have a path."""
        found = super().locate(location)
        return found.below(self.client.base) or found

    def _image_id(self, key: str) -> str | None:
        """The id of the image with this key; None for what lies elsewhere or deeper, where storelib puts none."""
        prefix = self.conf.s3_store_key_prefix
        image_id = key[len(prefix) :]
        return image_id if key.startswith(prefix) and "/" not in image_id else None

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Any) -> S3Writer:
        """Asks nothing: the request that publishes the image finds out whether the id is taken."""
        return S3Writer(self, image_id)

    def open_reader(self, location: S3Location, offset: int, length: int | None, context: Any) -> S3Reader:
        """Send the first request."""
        return S3Reader(self, location, offset, length)

    def measure(self, location: S3Location, context: Any) -> int:
        """The size that a HEAD tells."""
        return int(self.head(location)["ContentLength"])

    def remove(self, location: S3Location, context: Any) -> None:
        """Delete the object; the HEAD before tells whether there is one, which a DELETE does not."""
        self.removal(location, context)()

    def removal(self, location: S3Location, context: Any) -> Callable[[], None]:
        """The same, of the object alone that the first HEAD has seen."""
        met: tuple[object, ...] = ()

        def remove() -> None:
            nonlocal met
            found = self.head(location)
            this = version_of(found)
            met = met or this
            if this != met:
                raise NotFound(f"{location} was removed; there is another image now")
            try:
                answer = self.client.call("delete_object", Bucket=location.bucket, Key=location.key)
                if not names_itself(answer):
                    raise BadAnswer("DeleteObject", "no content")
            except BadAnswer:
                with contextlib.suppress(NotFound):
                    mapped(lambda: self.head(location), self.map_error, str(location))
                    raise

        return remove

    def head(self, location: S3Location) -> dict[str, Any]:
        """What the server knows of one object."""
        answer: dict[str, Any] = self.client.call(
            "head_object", Bucket=location.bucket, Key=location.key, **self.client.customer_key
        )
        return answer

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        """See errors.py."""
        if self._awaits_bucket(error):
            return NotFound(f"{subject}: nothing was added yet, so there is no bucket")
        return storelib_error(error, subject)

    def _awaits_bucket(self, error: Exception) -> bool:
        """There is no bucket, and none is needed before something is added."""
        return bool(error_code(error) == "NoSuchBucket" and self.conf.s3_store_create_bucket_on_put)

    def in_bucket(self, call: Callable[[], T]) -> T:
        """``call()``, and once more with the bucket made before if it is missing and that is allowed."""
        try:
            return call()
        except Exception as error:
            if not self._awaits_bucket(error):
                raise
        self._create_bucket()
        return call()

    def _create_bucket(self) -> None:
        region = self.client.region
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        try:
            self.client.call("create_bucket", Bucket=self.conf.s3_store_bucket, **place)
        except Exception as error:
            if error_code(error) not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise

    # -- Looking after the store ------------------------------------------------------------------------------

    def _listed(self, operation: str, **parameters: str) -> Iterator[dict[str, Any]]:
        """The entries of a listing of the bucket."""
        try:
            yield from listed(self.client, operation, Bucket=self.conf.s3_store_bucket, **parameters)
        except Exception as error:
            if not self._awaits_bucket(error):
                raise

    def candidate_locations(self, image_id: str) -> list[S3Location]:
        """The only one."""
        return [self.location(image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """Every object directly below the prefix."""
        prefix = self.conf.s3_store_key_prefix
        for found in self._listed("list_objects_v2", Prefix=prefix, Delimiter="/"):
            image_id = self._image_id(found["Key"])
            # Some tools put an empty object where they show a folder.
            if image_id not in (None, "", ".", ".."):
                modified = found["LastModified"].timestamp()
                yield ImageInfo(self.location(image_id).uri, found["Size"], image_id, modified, found.get("ETag"))

    def inspect(self, location: S3Location, context: Any) -> ImageInfo:
        """What a HEAD tells."""
        answer = self.head(location)
        return ImageInfo(
            location.uri,
            int(answer["ContentLength"]),
            self._image_id(location.key),
            answer["LastModified"].timestamp() if "LastModified" in answer else None,
            answer.get("ETag"),
            dict(answer.get("Metadata", {})),
        )

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Multipart uploads in which nothing happened for that long."""
        latest = time.time() - older_than
        start = f"{self.conf.s3_store_key_prefix}{prefix or ''}"
        for upload in self._listed("list_multipart_uploads", Prefix=start):
            initiated = upload["Initiated"].timestamp()
            # Not every server restricts the list to the prefix.
            if not upload["Key"].startswith(start) or self._image_id(upload["Key"]) is None or initiated > latest:
                continue
            garbage = self._dead(upload["Key"], upload["UploadId"], initiated)
            if garbage is not None and garbage.modified <= latest:
                yield garbage

    def _dead(self, key: str, upload_id: str, initiated: float) -> Garbage | None:
        """An upload with its size and the time of its last part; None if it is gone, or this process's own."""
        if upload_id in self.live_uploads:
            return None
        size, modified = 0, initiated
        try:
            for part in self._listed("list_parts", Key=key, UploadId=upload_id):
                size += part["Size"]
                modified = max(modified, part["LastModified"].timestamp())
        except Exception as error:
            if error_code(error) in GONE:
                return None
            raise
        return Garbage(f"{key} (upload {upload_id})", self._image_id(key), size, modified, (key, upload_id, initiated))

    def discard(self, garbage: Garbage) -> bool:
        """Abort the upload unless something has happened in it since."""
        key, upload_id, initiated = garbage.handle
        now = self._dead(key, upload_id, initiated)
        if now is None or now.modified > garbage.modified:
            return False
        target = {"Bucket": self.conf.s3_store_bucket, "Key": key, "UploadId": upload_id}
        answer = self.client.call("abort_multipart_upload", **target)
        if not names_itself(answer) and self._dead(key, upload_id, initiated) is not None:
            raise BadAnswer("AbortMultipartUpload", "no content")
        return True

    def probe(self) -> Health:
        """The first time, do all that is done with images and try what becomes of If-None-Match; later, list."""
        where = f"bucket {self.conf.s3_store_bucket} at {self.client.host}"
        if self._probed:
            next(iter(self.images()), None)
        else:
            rehearse(self)
        if Capability.ADD not in self.capabilities:
            return Health(f"{where} can be read")
        if not self._probed:
            self._probe_conditions()
        how = "atomic" if self.conditional_complete else "not atomic for images of several parts"
        return Health(f"{where} can be read and written; adds are {how if self.conditional_put else 'not atomic'}")

    def _probe_conditions(self) -> None:
        mode = self.conf.s3_store_conditional_writes
        promised = f"store {self.name}, option s3_store_conditional_writes = on: the server"
        try:
            put, complete = mapped(lambda: honours_conditions(self), self.map_error, self.name)
        except OperationNotSupported as error:
            if mode == "on":
                raise BadStoreConfiguration(f"{promised} refuses If-None-Match") from error
            raise
        if mode == "on" and not (put and complete):
            raise BadStoreConfiguration(f"{promised} ignores If-None-Match")
        if mode == "auto":
            self.conditional_put = put
            if put and complete:
                self._set_conditional_complete()
        self._probed = True

    # -- What the server does by itself -----------------------------------------------------------------------

    def server_side_copy(self, source: S3Location, image_id: str, context: Any) -> S3Copy | None:
        """See copying.py. None where the server gives no ETag, by which alone it can be held to one version."""
        answer = self.head(source)
        return S3Copy(self, source, self.open_writer(image_id, None, context), answer) if answer.get("ETag") else None

    def presign(self, location: ParsedLocation | str, expires: float) -> str:
        """A signed URL; it works as long as the credentials that signed it do, and not for images with SSE-C."""
        found = self.locate(location)
        if not 1 <= expires <= _LONGEST_SIGNATURE:
            raise Invalid(f"a signed URL can be valid for 1 to {_LONGEST_SIGNATURE} seconds, not {expires!r}")
        target = {"Bucket": found.bucket, "Key": found.key}

        def sign() -> str:
            return str(self.client.get().generate_presigned_url("get_object", target, ExpiresIn=int(expires)))

        return self._call(sign, found)

    def set_acls(
        self,
        location: ParsedLocation | str,
        public: bool = False,
        read_tenants: Sequence[str] = (),
        write_tenants: Sequence[str] = (),
        context: Any = None,
    ) -> None:
        """Replace the object's access control list; the owner keeps full control."""
        found = self.locate(location)
        readers = [*read_tenants, *(["*"] if public else [])]
        grants = [_grant(tenant, "READ") for tenant in dict.fromkeys(readers)]
        grants += [_grant(tenant, "FULL_CONTROL") for tenant in dict.fromkeys(write_tenants)]
        target = {"Bucket": found.bucket, "Key": found.key}

        def replace() -> None:
            owner = self.client.call("get_object_acl", **target)["Owner"]
            own = {"Grantee": {"Type": "CanonicalUser", "ID": owner["ID"]}, "Permission": "FULL_CONTROL"}
            self.client.call("put_object_acl", **target, AccessControlPolicy={"Owner": owner, "Grants": [own, *grants]})

        self._call(replace, found)


def _grant(tenant: str, permission: str) -> dict[str, Any]:
    everybody = {"Type": "Group", "URI": _EVERYBODY}
    grantee = everybody if tenant == "*" else {"Type": "CanonicalUser", "ID": tenant}
    return {"Grantee": grantee, "Permission": permission}
