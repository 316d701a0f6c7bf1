# SPDX-License-Identifier: Apache-2.0
"""S3Store: configuration, and everything but moving bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import secrets
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from oslo_config import cfg

from storelib.capabilities import READ_WRITE, Capability
from storelib.driver import (
    Area,
    Context,
    Deletion,
    Digests,
    Garbage,
    Health,
    ImageInfo,
    Part,
    Store,
    check_expires,
    tenants_of,
    web_server,
)
from storelib.drivers.s3 import garbage
from storelib.drivers.s3.bucket import AMAZON_SERVICE, Bucket, PartChecksums
from storelib.drivers.s3.errors import BadAnswer, names_itself
from storelib.drivers.s3.location import DEFAULT_PORTS, SCHEMES, S3Location
from storelib.drivers.s3.options import OPTIONS, object_settings
from storelib.drivers.s3.publication import CHECKSUMS, version_of
from storelib.drivers.s3.reader import S3Reader
from storelib.drivers.s3.writer import S3Copy, S3Writer
from storelib.exceptions import BadStoreUri, Duplicate, NotFound, OperationNotSupported, StoreError
from storelib.rehearsal import rehearse
from storelib.transfer.contract import Options
from storelib.transfer.retry import mapped
from storelib.uris import ParsedLocation

_EVERYBODY = "http://acs.amazonaws.com/groups/global/AllUsers"
#: Signatures of version 4 are valid for a week at most.
_LONGEST_SIGNATURE = 7 * 24 * 3600
#: Below this key ``check`` tries what the server does: deeper than images lie, so that no list shows it.
_CHECKS = ".storelib-check/"


class S3Store(Store[S3Location]):
    """Images as objects in one bucket, below a prefix.

    * Of adds racing for one id exactly one succeeds where s3_store_conditional_writes is on, or ``check`` has seen
      that the server honours If-None-Match when an upload is completed. Elsewhere the last of several may win.
    * ``gc`` aborts multipart uploads below the prefix in which nothing happened for ``older_than``, which must be
      longer than one part takes: an add whose upload is aborted fails. It spares those of this very object at any age.
    * ``set_acls`` takes canonical user ids; the users who may write get full control, since S3 knows nothing less for
      objects. Tenant ``*`` is everybody.
    """

    schemes = SCHEMES
    location_class = S3Location
    options: ClassVar[Sequence[cfg.Opt]] = OPTIONS
    capabilities = READ_WRITE | Capability.LIST | Capability.GC | Capability.ACLS | Capability.COPY | Capability.PRESIGN
    bucket: Bucket

    def __init__(self, name: str, conf: Options) -> None:
        super().__init__(name, conf)
        self._probed = False

    # -- Configuration ----------------------------------------------------------------------------------------

    def configure_get(self) -> None:
        """Where the bucket is and who asks."""
        self.bucket = Bucket(self.conf, self.name)
        if self.bucket.customer_key:
            # A URL has no place for a key that the server does not keep.
            self.capabilities &= ~Capability.PRESIGN
        try:
            self.bucket.location("image")
        except BadStoreUri:
            option = "s3_store_key_prefix" if self.bucket.name else "s3_store_bucket"
            what = "a bucket's name, and a prefix without '.' and '..' as parts"
            raise self.misconfigured(option, what) from None
        if self.conf.s3_store_conditional_writes == "on":
            self._set_conditional_complete()

    def configure_add(self) -> None:
        """How images are stored."""
        algorithm = self.conf.s3_store_checksum_algorithm
        self.bucket.checksums = PartChecksums(CHECKSUMS[0] if algorithm == "auto" else algorithm)
        self.bucket.object_settings = object_settings(self.conf, self.name)

    def _set_conditional_complete(self) -> None:
        self.bucket.conditional_complete = True
        if Capability.ADD in self.capabilities:
            self.capabilities |= Capability.ATOMIC_ADD

    # -- Locations --------------------------------------------------------------------------------------------

    def areas(self) -> list[Area]:
        """The keys with the prefix in the bucket; Amazon's buckets have one name in all regions."""
        bucket = self.bucket
        amazon = AMAZON_SERVICE.search(bucket.host)
        server = amazon[1] if amazon else web_server(bucket.host, bucket.port)
        option = "s3_store_key_prefix" if bucket.prefix else "s3_store_bucket"
        return [Area(("s3", server, bucket.base, bucket.name), bucket.prefix, option)]

    def owns(self, location: S3Location) -> bool:
        """Whether it is in this bucket of this server, below the prefix; http and https are the same server."""
        bucket = self.bucket
        usual, found = DEFAULT_PORTS[bucket.scheme], location.below(bucket.base)
        return (
            found is not None
            and location.host == bucket.host
            and (location.port or usual) == (bucket.port or usual)
            and found.bucket == bucket.name
            and found.key.startswith(bucket.prefix)
        )

    def roots(self) -> list[tuple[str, ...]]:
        """Host, bucket, and the first folder of the prefix, if it has one."""
        bucket = self.bucket
        folder, slash, _ = bucket.prefix.partition("/")
        return [(bucket.host, bucket.name, folder if slash else "")]

    @classmethod
    def possible_roots(cls, location: S3Location) -> Iterator[tuple[str, ...]]:
        """Every bucket and folder that the path may name, whatever the path of the server is."""
        names = [location.bucket, *location.key.split("/")[:-1], ""]
        for bucket, folder in itertools.pairwise(names[:3] if location.base else names):
            yield location.host, bucket, ""
            yield location.host, bucket, folder

    def locate(self, location: ParsedLocation | str) -> S3Location:
        """Bucket and key as this store knows them, whose server may have a path."""
        found = super().locate(location)
        return found.below(self.bucket.base) or found

    def canonical(self, location: S3Location) -> S3Location:
        """With the scheme and the port of this store."""
        return dataclasses.replace(location, scheme=self.bucket.scheme, port=self.bucket.port)

    # -- The driver contract ----------------------------------------------------------------------------------

    def open_writer(self, image_id: str, size: int | None, context: Context | None) -> S3Writer:
        """Asks nothing: the request that publishes the image finds out whether the id is taken."""
        return S3Writer(self.bucket, image_id)

    def open_reader(self, location: S3Location, offset: int, length: int | None, context: Context | None) -> S3Reader:
        """Send the first request."""
        return S3Reader(self.bucket, location, offset, length)

    def remove(self, location: S3Location, context: Context | None, deletion: Deletion) -> None:
        """Delete the object; the HEAD before tells whether there is one, which a DELETE does not."""
        deletion.meet(version_of(self.bucket.head(location)), location)
        try:
            response = self.bucket.call("delete_object", Bucket=location.bucket, Key=location.key)
            if not names_itself(response):
                raise BadAnswer("DeleteObject", "no content")
        except BadAnswer:
            with contextlib.suppress(NotFound):
                mapped(lambda: self.bucket.head(location), self.map_error, str(location))
                raise

    def map_error(self, error: Exception, subject: str) -> StoreError | None:
        return self.bucket.map_error(error, subject)

    # -- Looking after the store ------------------------------------------------------------------------------

    def candidate_locations(self, image_id: str) -> list[S3Location]:
        """The key of the id; no image has another."""
        return [self.bucket.location(image_id)]

    def images(self) -> Iterator[ImageInfo]:
        """Every object directly below the prefix."""
        for found in self.bucket.listed("list_objects_v2", Prefix=self.bucket.prefix, Delimiter="/"):
            image_id = self.bucket.image_id(found["Key"])
            # Some tools put an empty object where they show a folder. A NUL is in no URI.
            if image_id not in (None, "", ".", "..") and "\0" not in found["Key"]:
                uri, modified = self.bucket.location(image_id).uri, found["LastModified"].timestamp()
                yield ImageInfo(uri, found["Size"], image_id, modified, found.get("ETag"))

    def inspect(self, location: S3Location, context: Context | None) -> ImageInfo:
        """What a HEAD tells."""
        response = self.bucket.head(location)
        return ImageInfo(
            location.uri,
            int(response["ContentLength"]),
            self.bucket.image_id(location.key),
            response["LastModified"].timestamp() if "LastModified" in response else None,
            response.get("ETag"),
            dict(response.get("Metadata", {})),
        )

    def garbage(self, older_than: float, prefix: str | None) -> Iterator[Garbage]:
        """Multipart uploads in which nothing happened for that long."""
        return garbage.find(self.bucket, older_than, prefix)

    def discard(self, item: Garbage) -> bool:
        """Abort the upload unless something has happened in it since."""
        return garbage.discard(self.bucket, item)

    def probe(self) -> Health:
        """The first time, do all that is done with images and try what becomes of If-None-Match; later, list."""
        where = f"bucket {self.bucket.name} at {self.bucket.host}"
        if self._probed:
            next(iter(self.images()), None)
        else:
            rehearse(self)
        if Capability.ADD not in self.capabilities:
            return Health(f"{where} can be read")
        if not self._probed:
            self._probe_conditions()
        if not self.bucket.conditional_put:
            adds = "not atomic"
        else:
            adds = "atomic" if self.bucket.conditional_complete else "not atomic for images of several parts"
        return Health(f"{where} can be read and written; adds are {adds}")

    def _probe_conditions(self) -> None:
        mode = self.conf.s3_store_conditional_writes
        promised = "s3_store_conditional_writes = on"
        try:
            put, complete = mapped(lambda: _honours_conditions(self.bucket), self.map_error, self.name)
        except OperationNotSupported as error:
            if mode == "on":
                raise self.misconfigured(promised, "the server refuses If-None-Match") from error
            raise
        if mode == "on" and not (put and complete):
            raise self.misconfigured(promised, "the server ignores If-None-Match")
        if mode == "auto":
            self.bucket.conditional_put = put
            if put and complete:
                self._set_conditional_complete()
        self._probed = True

    # -- What the server does by itself -----------------------------------------------------------------------

    def server_side_copy(self, source: S3Location, image_id: str, context: Context | None) -> S3Copy | None:
        """None where the server gives no ETag, by which alone it can be held to one version."""
        response = self.bucket.head(source)
        if not response.get("ETag"):
            return None
        return S3Copy(self.bucket, source, self.open_writer(image_id, None, context), response)

    def presign(self, location: ParsedLocation | str, expires: float) -> str:
        """A signed URL; it works as long as the credentials that signed it do."""
        self.require(Capability.PRESIGN, OperationNotSupported)
        check_expires(expires, _LONGEST_SIGNATURE)
        found = self.locate(location)
        target = {"Bucket": found.bucket, "Key": found.key}

        def sign() -> str:
            return str(self.bucket.client().generate_presigned_url("get_object", target, ExpiresIn=int(expires)))

        return self._call(sign, found)

    def set_acls(
        self,
        location: ParsedLocation | str,
        public: bool = False,
        read_tenants: Sequence[str] = (),
        write_tenants: Sequence[str] = (),
        context: Context | None = None,
    ) -> None:
        """Replace the object's access control list; the owner keeps full control."""
        readers, writers = tenants_of(public, read_tenants, write_tenants)
        found = self.locate(location)
        grants = [_grant(tenant, "READ") for tenant in dict.fromkeys([*readers, *(["*"] if public else [])])]
        grants += [_grant(tenant, "FULL_CONTROL") for tenant in dict.fromkeys(writers)]
        target = {"Bucket": found.bucket, "Key": found.key}

        def replace() -> None:
            owner = self.bucket.call("get_object_acl", **target)["Owner"]
            own = {"Grantee": {"Type": "CanonicalUser", "ID": owner["ID"]}, "Permission": "FULL_CONTROL"}
            self.bucket.call("put_object_acl", **target, AccessControlPolicy={"Owner": owner, "Grants": [own, *grants]})

        self._call(replace, found)


def _grant(tenant: str, permission: str) -> dict[str, Any]:
    everybody = {"Type": "Group", "URI": _EVERYBODY}
    grantee = everybody if tenant == "*" else {"Type": "CanonicalUser", "ID": tenant}
    return {"Grantee": grantee, "Permission": permission}


# -- What the server makes of If-None-Match -----------------------------------------------------------------------


def _honours_conditions(bucket: Bucket) -> tuple[bool, bool]:
    """Whether a PUT, and whether completing an upload, fail over an object that exists; tried as images are added.

    Some servers refuse the condition, some ignore it, some honour it only in a PUT.
    """
    image_id = f"{_CHECKS}{secrets.token_hex(16)}"
    with contextlib.ExitStack() as cleanup:
        _put(bucket, image_id, b"1", cleanup)
        put = complete = False
        try:
            _put(bucket, image_id, b"2", cleanup)
        except Duplicate:
            put = True
        try:
            _upload(bucket, image_id, b"3", cleanup)
        except Duplicate:
            complete = True
        # Where the server refuses the condition itself, it was a look that found the object.
        return put and bucket.conditional_put, complete and bucket.asks_at_completion


def _put(bucket: Bucket, image_id: str, data: bytes, cleanup: contextlib.ExitStack) -> None:
    writer = S3Writer(bucket, image_id)
    cleanup.callback(writer.abort)
    writer.put_whole(memoryview(data), Digests(None, hashlib.sha512(data).hexdigest()))


def _upload(bucket: Bucket, image_id: str, data: bytes, cleanup: contextlib.ExitStack) -> None:
    writer = S3Writer(bucket, image_id)
    cleanup.callback(writer.abort)
    writer.reserve(len(data))
    writer.write(Part(0, 0, memoryview(data)))
    writer.complete(look=False)
