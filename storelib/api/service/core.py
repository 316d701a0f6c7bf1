# SPDX-License-Identifier: Apache-2.0
"""Core: what every part of the service stands on. Repository, stores, policy, quota, protection and notifications, and
the questions all parts ask: which image is this, may the caller see it and do that to it, which store is meant.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from oslo_config import cfg

from storelib.api import config, schemas
from storelib.api.context import Context
from storelib.api.db.records import Image, ImageLocation, Member, NewImage, Status, TaskEnd, Visibility
from storelib.api.db.repository import Repository
from storelib.api.errors import (
    ApiError,
    BadRequest,
    ImageNotFound,
    MemberNotFound,
    NotPermitted,
    ResourceNotFound,
)
from storelib.api.messages import told
from storelib.api.policy import Policy
from storelib.api.service.certificates import Certificates
from storelib.api.service.keys import key_manager_from
from storelib.api.service.limits import limits_from
from storelib.api.service.notifications import Notifier, notifier_from
from storelib.api.service.protection import Protection
from storelib.api.service.quota import Quota
from storelib.api.service.signatures import Signatures
from storelib.api.service.under_way import UnderWay
from storelib.capabilities import Capability
from storelib.driver import Store
from storelib.drivers.http import HttpStore
from storelib.exceptions import BadStoreConfiguration, StoreError, UnknownScheme
from storelib.exceptions import NotFound as NoData
from storelib.registry import Registry
from storelib.transfer.digests import new_hasher

LOG = logging.getLogger(__name__)

#: What rules find in every target; that of ``preload_image`` has a node besides.
_COMMON = frozenset(
    {
        *("image_id", "project_id", "owner", "tenant", "member_id", "visibility", "status", "protected", "os_hidden"),
        *("node", "node_group"),
    }
)
#: What they find besides in an image, which any of its properties may be, too.
_ATTRIBUTES = (
    *("id", "name", "size", "virtual_size", "checksum", "os_hash_algo", "os_hash_value", "disk_format"),
    *("container_format", "min_disk", "min_ram"),
)
#: An image whose data is being deleted.
DELETING: tuple[Status, ...] = ("pending_delete",)


class Judged(Protocol):
    """What decides who may do something to an image."""

    @property
    def id(self) -> str: ...
    @property
    def owner(self) -> str | None: ...
    @property
    def visibility(self) -> Visibility: ...
    @property
    def status(self) -> Status: ...
    @property
    def protected(self) -> bool: ...
    @property
    def os_hidden(self) -> bool: ...


class Core:
    """Made once per application; safe from many threads. Raises BadStoreConfiguration for what cannot be."""

    def __init__(
        self, conf: cfg.ConfigOpts, repository: Repository, registry: Registry, notifier: Notifier | None = None
    ) -> None:
        self.options = options = config.read_options(conf)
        for option, known in config.FORMATS.items():
            if unknown := ", ".join(name for name in getattr(options, option) if name not in known):
                LOG.warning("[api] %s: storelib does not know %s, and takes it for a format of yours", option, unknown)
        self.repository = repository
        self.registry = registry
        self.policy = Policy(conf)
        self.quota = Quota(options, repository)
        self.limits = limits_from(conf, repository)
        self.protection = Protection(
            self.policy, options.property_protection_file, options.property_protection_rule_format
        )
        self.notify = notifier or notifier_from(conf)
        for store in registry:
            if isinstance(store, HttpStore):
                # Users name the servers, one of which may send bytes for ever.
                store.count_at_most(options.image_size_cap)
        self.keys = key_manager_from(conf)
        self.signatures = Signatures(
            Certificates(self.keys, options.signature_certificates_dir, options.default_trusted_certificate_ids)
        )
        self.under_way = UnderWay()
        #: The id of this process in the database, which the lease knows.
        self.process_id: Callable[[], str] = lambda: ""
        #: Tokens of claims, by location, of which this process does not know whether the database has them.
        self.unsure_claims: dict[int, tuple[str, ...]] = {}
        # Reading an option costs oslo.config tens of microseconds, so the ones every request needs are read once.
        self.hashing_algorithm: str = options.hashing_algorithm
        self.show_direct_url: bool = options.show_image_direct_url
        self.show_locations: bool = options.show_multiple_locations
        new_hasher(self.hashing_algorithm)
        custom, required = schemas.custom_properties(options.property_schema_file)
        self.schema = schemas.ImageSchema(
            options.container_formats,
            options.disk_formats,
            custom,
            additional=options.allow_additional_image_properties,
            required=required,
        )

    def tell_task(self, task_id: str, *events: str) -> None:
        """Notify of a task as it is now; that the database does not answer is only logged."""
        if not self.notify.active:
            return
        try:
            task = self.repository.tasks.get(task_id)
        except ApiError as error:
            LOG.warning("task %s: nobody is told of it: %s", task_id, error)
            return
        for event in events:
            self.notify.task(event, task)

    def tell_end(self, ended: TaskEnd | None) -> None:
        """The same of a task that has ended, if there is one."""
        if ended is not None:
            self.tell_task(ended.task_id, ended.status, "run")

    # -- images -------------------------------------------------------------------------------------------------

    def target(self, context: Context, image: Judged) -> dict[str, Any]:
        """What policies may say about an image."""
        target: dict[str, Any] = {
            "image_id": image.id,
            "visibility": image.visibility,
            "status": image.status,
            "protected": image.protected,
            "os_hidden": image.os_hidden,
        }
        # Left out where it is not set: a context without a project must not match an image without an owner.
        if image.owner is not None:
            target["project_id"] = target["owner"] = target["tenant"] = image.owner
        if image.visibility == "shared" and context.project_id is not None and context.project_id != image.owner:
            target["member_id"] = context.project_id
        if self.policy.names_more_than(_COMMON):
            return self._all_of(image) | target
        return target

    def _all_of(self, image: Judged) -> dict[str, Any]:
        return _described(image if isinstance(image, Image) else self.repository.images.get(image.id, deleted=True))

    def target_of_new(self, new: NewImage) -> dict[str, Any]:
        """The same of an image that is to be made."""
        said: dict[str, Any] = {"image_id": new.id}
        said |= {name: getattr(new, name) for name in ("visibility", "status", "protected", "os_hidden")}
        if new.owner is not None:
            said |= dict.fromkeys(("project_id", "owner", "tenant"), new.owner)
        return _described(new) | said if self.policy.names_more_than(_COMMON) else said

    def get_visible(self, context: Context, image_id: str) -> Image:
        """The image, if the caller may know of it; raises ImageNotFound otherwise, whatever the reason."""
        image = self.repository.images.get(image_id)
        if not self.may_see(context, image):
            raise ImageNotFound(f"there is no image {image_id}")
        return image

    def may_see(self, context: Context, image: Judged, *, is_member: bool = False) -> bool:
        """Whether the caller may know of the image. ``is_member``: if it is shared, it is so with the caller."""
        own = image.owner is not None and image.owner == context.project_id
        hidden = image.visibility in ("private", "shared") and not own and not context.is_admin
        if hidden and (image.visibility == "private" or not (is_member or self._is_member(context, image))):
            return False
        return self.policy.allows(context, "get_image", self.target(context, image))

    def get_authorized(self, context: Context, image_id: str, action: str) -> Image:
        """The image, if the caller may do ``action`` to it.

        Raises NotPermitted to callers who may see the image, ImageNotFound to others.
        """
        image = self.get_visible(context, image_id)
        self.require(context, action, image)
        return image

    def require(self, context: Context, action: str, image: Image) -> None:
        """Raise NotPermitted unless the caller may do ``action`` to ``image``."""
        self.policy.require(context, action, self.target(context, image))

    def shows_places(self, context: Context, image: Image) -> bool:
        """Whether the image as it is shown to the caller says where its data is."""
        shown = (self.show_locations or self.show_direct_url) and not self.hides_places(context, image)
        return shown and self.policy.allows(context, "get_image_location", self.target(context, image))

    def hides_places(self, context: Context, image: Judged) -> bool:
        """Whether the image is deactivated and the caller no administrator: who knows where the data is can read it."""
        return image.status == "deactivated" and not context.is_admin

    def may_see_places(self, context: Context, image: Image) -> bool:
        """Whether the caller may know where the data of the image is, shown or asked for."""
        asked = self.policy.allows(context, "fetch_image_location", self.target(context, image))
        return (asked and not self.hides_places(context, image)) or self.shows_places(context, image)

    def _is_member(self, context: Context, image: Judged) -> bool:
        if context.project_id is None:
            return False
        try:
            self.repository.members.get(image.id, context.project_id)
        except MemberNotFound:
            return False
        return True

    # -- stores -------------------------------------------------------------------------------------------------

    def store(self, name: str | None) -> Store[Any]:
        """The store called ``name``, or the default one; raises BadRequest."""
        try:
            if name is None:
                return self.registry.default
            if name in self.registry.reserved:
                raise UnknownScheme(f"there is no store {name!r}")
            return self.registry[name]
        except (UnknownScheme, BadStoreConfiguration) as error:
            raise BadRequest(told(error)) from error

    def store_of(self, location: ImageLocation, context: Context) -> Store[Any]:
        """The store a location is in: the one its metadata names, or else the one its URI belongs to."""
        return store_of(self.registry, location, context)

    def possible_stores(self, location: ImageLocation) -> list[str]:
        """The ids of the stores that a location may be in: the one its metadata names, or else all that its URI fits.

        The metadata may name none, or one that is called otherwise by now.
        """
        named = _named(self.registry, location)
        try:
            return [store.name for store in ([named] if named else self.registry.owners(location.uri))]
        except StoreError:
            return []

    def by_weight(self, locations: Iterable[ImageLocation]) -> list[ImageLocation]:
        """Locations in the order they are read: those in stores of the highest weight first, else as listed."""
        found = list(locations)
        if len(found) < 2:
            return found
        weights = {store.name: int(store.conf.weight) for store in self.registry}
        return sorted(found, key=lambda location: -weights.get(str(location.metadata.get("store")), 0))

    def delete_data(self, image_id: str, location: ImageLocation, context: Context) -> None:
        """Delete the data at ``location``; it being gone already is fine. Raises StoreError.

        Data in a store that cannot delete, a foreign web server for instance, stays there.
        """
        store = self.store_of(location, context)
        if Capability.DELETE not in store.capabilities and Capability.ADD not in type(store).capabilities:
            return
        try:
            store.delete(location.uri, context)
        except NoData:
            # A process that was killed over it may have got no further than to take its name away.
            try:
                collect(store, image_id)
            except StoreError as error:
                if error.transient:
                    raise
                left = "image %s: what is left of it in store %s is not looked for: %s"
                LOG.warning(left, image_id, store.name, error)

    def refresh_acls(self, context: Context, image: Image) -> None:
        """Let those read an image's data in its stores who may see the image, where the stores have such lists.

        What cannot be set is logged: the API itself serves the data in any case.
        """
        members: Sequence[Member] | None = None
        for location in image.locations:
            try:
                store = self.store_of(location, context)
                if Capability.ACLS not in store.capabilities:
                    continue
                if members is None:
                    members = self.repository.members.list_for(image.id)
                readers = [member.member for member in members]
                writers = [member.member for member in members if member.can_share]
                store.set_acls(location.uri, image.visibility == "public", readers, writers, context)
            except StoreError as error:
                LOG.warning("image %s: its access list at %r is not set: %s", image.id, location, error)

    def writable(self, context: Context) -> None:
        """Raise NotPermitted for a context that may change nothing."""
        if context.read_only:
            raise NotPermitted("requests without a token may only read")

    def find_store(self, name: str) -> Store[Any]:
        """The store called ``name``; raises ResourceNotFound."""
        if name in self.registry.reserved or name not in self.registry:
            raise ResourceNotFound(f"there is no store {name!r}")
        return self.registry[name]


def store_of(registry: Registry, location: ImageLocation, context: Context | None = None) -> Store[Any]:
    """The store a location is in: the one its metadata names, or else the one its URI belongs to. Raises StoreError."""
    return _named(registry, location) or registry.resolve(location.uri, context)


def own_spelling(store: Store[Any], uri: str) -> str:
    """``uri`` as ``store`` writes it, or two images with this data would not be seen to share it when one is deleted.

    Data that nobody deletes keeps the URI that it was given, with its credentials. Raises StoreError.
    """
    return store.uri_of(uri) if Capability.DELETE in store.capabilities else uri


def _named(registry: Registry, location: ImageLocation) -> Store[Any] | None:
    name = location.metadata.get("store")
    return registry[name] if isinstance(name, str) and name in registry else None


def collect(store: Store[Any], image_id: str) -> None:
    """Remove what adds and deletions of an image that broke off left in a store, if it can find that.

    Raises StoreError.
    """
    if Capability.GC in store.capabilities:
        store.gc(0, prefix=image_id)


def _described(image: Image | NewImage) -> dict[str, Any]:
    # A caller who may name properties must not say by them whose the image is where nothing else does.
    properties = {name: value for name, value in image.properties.items() if name not in _COMMON}
    return properties | {name: getattr(image, name) for name in _ATTRIBUTES}
