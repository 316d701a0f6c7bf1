# SPDX-License-Identifier: Apache-2.0
"""Service: Cinder as the options of one store name it: who asks, what is requested of it, and what is attached by whom.

Api is the requests as one user, each response looked at before it is believed, and waiting for volumes. Whatever a
proxy or a login page says in Cinder's place is no success, and no "not found" either. Sessions is who asks: the store's
own user, or the user of a request by the token that came with it. A session belongs to one store and is never shared
with another; keystoneauth renews tokens of the store's own user, before they expire and when Cinder refuses them.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from storelib._version import __version__
from storelib.driver import Context
from storelib.drivers.cinder.errors import MICROVERSION, is_explained, is_proven, status_of
from storelib.drivers.cinder.location import CinderLocation, is_volume_id
from storelib.drivers.cinder.options import volume_settings
from storelib.exceptions import (
    BadStoreConfiguration,
    Forbidden,
    InUseByStore,
    NotFound,
    RemoteServiceUnavailable,
    StoreError,
    misconfigured,
)
from storelib.extras import needing
from storelib.times import posix_seconds
from storelib.transfer.certificates import check_certificates
from storelib.transfer.contract import Options
from storelib.transfer.deadlines import within
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http.headers import posix_time
from storelib.transfer.http.keystone import Endpoint, project_of, sensible
from storelib.volumes.attachments import AttachmentState, SharedAttachments
from storelib.volumes.connectors import Connectors
from storelib.volumes.holds import Holds

_USER = (
    "cinder_store_auth_address",
    "cinder_store_user_name",
    "cinder_store_password",
    "cinder_store_project_name",
)
_APPLICATION = (
    "cinder_store_auth_address",
    "cinder_store_application_credential_id",
    "cinder_store_application_credential_secret",
)
#: Seconds between two looks at a volume that is on its way to another state: at first, and at most.
_FIRST_LOOK, _LONGEST_LOOK = 0.05, 2.0
#: Volumes in one page of a list, the most that Cinder gives unless it is told otherwise.
_PAGE = 1000
#: What the catalog may call Cinder whose API is version 3. (A volumev2 there is an older one.)
_TYPES = ("volumev3", "block-storage", "block-store")
#: States of a volume on its way out, in which nobody is to see it any more.
LEAVING = ("deleting", "error_deleting")


def import_clients() -> None:
    """Raise MissingDependency unless the clients are installed."""
    with needing("the cinder driver", "cinder"):
        for module in ("cinderclient.client", "keystoneauth1.session"):
            importlib.import_module(module)


class Service:
    """Safe to use from many threads; making one opens no connection. Raises BadStoreConfiguration."""

    def __init__(self, name: str, conf: Options) -> None:
        self.name = name
        self.conf = conf
        settings = volume_settings(name, conf)
        self._directory = settings.directory
        self.connectors = Connectors(settings)
        #: There is a user of the store's own; without, each request must bring its token.
        self.has_user = has_service_user(name, conf)
        self._sessions = Sessions(name, conf)
        # The engine gives up a call a little later, so that who waits can say what for.
        self._timeout = min(conf.cinder_state_transition_timeout, 0.9 * conf.transfer_timeout)
        self._lock = threading.Lock()
        self._user: User | None = None
        forget_in_child(self)

    def user(self, context: Context | None) -> User:
        """The store's own user, or that of a request; raises Forbidden for a request without a token."""
        if not self.has_user:
            return self._new_user(self._sessions.of_request(context), project_of(context))
        with self._lock:
            if self._user is None:
                self._user = self._new_user(self._sessions.of_service())
            return self._user

    def _new_user(self, client: Any, project: str | None = None) -> User:
        api = Api(client, self._timeout)
        # The same token means nothing in another cloud.
        cloud = hashlib.sha256(api.endpoint.encode()).hexdigest()[:16]
        holds = Holds(os.path.join(self._directory, cloud), project or api.project)
        return User(api, holds, self.connectors, SharedAttachments(api, holds, self.connectors))

    def forget_parent(self) -> None:
        """In a forked child: connections are the parent's."""
        self._lock = threading.Lock()
        self._user = None
        self._sessions.forget_parent()

    def location(self, volume: str) -> CinderLocation:
        """The URI of a volume of this store."""
        return CinderLocation(volume, self.name)


@dataclass(frozen=True)
class User:
    """Requests to Cinder as one user, and what is attached by them."""

    api: Api
    holds: Holds
    connectors: Connectors
    attachments: SharedAttachments


# -- Requests ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Volume:
    """What Cinder tells of a volume."""

    id: str
    status: str
    #: GiB.
    size: int
    type: str | None
    metadata: Mapping[str, str]
    #: POSIX seconds, by Cinder's clock.
    created: float
    updated: float
    #: Several may have it attached at a time.
    multiattach: bool = False


class Api:
    """Safe to use from many threads."""

    def __init__(self, client: Any, timeout: float) -> None:
        """``client``: cinderclient's; ``timeout``: seconds that a volume may take from one state to another."""
        self._client = client
        self._timeout = timeout
        #: Headers of its last response.
        self._last: Mapping[str, str] = {}

    def now(self) -> float:
        """The latest that it was by Cinder's clock when it last answered, in POSIX seconds.

        Where its responses have no date, as behind nothing but uWSGI, what it is by this host's.
        """
        date = posix_time(self._last.get("Date"))
        # It is cut to whole seconds.
        return time.time() if date is None else date + 1.0

    @property
    def endpoint(self) -> str:
        """Cinder's scheme, host and port: which cloud this is."""
        with sensible():
            parts = urllib.parse.urlsplit(str(self._client.get_endpoint()))
        return f"{parts.scheme}://{parts.netloc}"

    @property
    def project(self) -> str:
        """The id of the project that all this is in; empty where only the token tells."""
        with sensible():
            return str(self._client.get_project_id() or "")

    # -- Volumes ------------------------------------------------------------------------------------------------------

    def volume(self, volume_id: str) -> Volume:
        """One volume; raises NotFound, also for one that is on its way out."""
        found = self.look_at(volume_id)
        if found is None or found.status in LEAVING:
            raise NotFound(f"there is no volume {volume_id}")
        return found

    def look_at(self, volume_id: str) -> Volume | None:
        """One volume in whatever state; None if there is none."""
        found = self._find(f"/volumes/{volume_id}", "volume")
        return None if found is None else _volume(found)

    def volumes(self, metadata: Mapping[str, str] | None = None) -> Iterator[Volume]:
        """All volumes of the project, or those that have all of this in their metadata; the oldest first."""
        query = {"sort": "created_at:asc,id:asc", "limit": str(_PAGE)}
        if metadata:
            query["metadata"] = str(dict(metadata))
        wanted = (metadata or {}).items()
        seen: list[str] = []
        more = True
        while more:
            page, more = self._page(query, seen)
            known = set(seen[-_PAGE:])
            fresh = [volume for volume in page if volume.id not in known]
            if page and more and not fresh:
                # A proxy that drops the query would give the same page for ever.
                raise _senseless("the next page of a list")
            # Some Cinders ignore a filter that their policy does not allow.
            yield from (volume for volume in fresh if wanted <= volume.metadata.items())
            seen += [volume.id for volume in fresh]
            more = more and bool(page)

    def _page(self, query: Mapping[str, str], seen: list[str]) -> tuple[list[Volume], bool]:
        """The volumes after the last one seen that is still there, and whether there are more."""
        refused: Exception | None = None
        for marker in [*reversed(seen), ""]:
            asked = {**query, "marker": marker} if marker else query
            try:
                document = self._get(f"/volumes/detail?{urllib.parse.urlencode(asked)}")
            except Exception as error:
                # The one that was to be the mark is gone.
                if not marker or status_of(error) not in (400, 404):
                    raise
                refused = error
                continue
            return [_volume(each) for each in _list(document, "volumes")], bool(document.get("volumes_links"))
        raise refused or StoreError("no page of a list")

    def create(
        self, size: int, name: str, metadata: Mapping[str, str], volume_type: str | None, source: str | None = None
    ) -> Volume:
        """Ask for a volume of ``size`` GiB, a clone of the volume ``source`` if that is given; it is made later."""
        wanted: dict[str, Any] = {"size": size, "name": name, "metadata": dict(metadata)}
        if volume_type and source is None:
            wanted["volume_type"] = volume_type
        if source is not None:
            wanted["source_volid"] = source
        try:
            return _volume(self._ask("POST", "/volumes", 202, "volume", {"volume": wanted}))
        except Exception as error:
            if _is_missing(error) and source is None:
                raise BadStoreConfiguration(
                    f"Cinder has no volume type {volume_type!r}; check cinder_volume_type"
                ) from error
            raise

    def has_type(self, volume_type: str) -> bool:
        """Whether there is a volume type of that name or id which the user may see."""
        # Of administrators Cinder thinks that they mean public types only, unless they say otherwise.
        found = _list(self._get("/types?is_public=None"), "volume_types")
        return any(volume_type in (each.get("name"), each.get("id")) for each in found if isinstance(each, Mapping))

    def type_name(self, type_id: str) -> str | None:
        """The name of the volume type with that id, as volumes tell it; None if there is none."""
        name = (self._find(f"/types/{type_id}", "volume_type") or {}).get("name")
        return None if name is None else str(name)

    def default_type(self) -> str | None:
        """The name of the type of volumes that are made without any."""
        name = self._ask("GET", "/types/default", 200, "volume_type").get("name")
        return None if name is None else str(name)

    def set_metadata(self, volume_id: str, metadata: Mapping[str, str]) -> None:
        """Set these, leave the others."""
        found = self._ask("POST", f"/volumes/{volume_id}/metadata", 200, "metadata", {"metadata": dict(metadata)})
        if not isinstance(found, Mapping) or any(found.get(key) != value for key, value in metadata.items()):
            raise _senseless("the metadata of a volume")

    def grow(self, volume_id: str, size: int) -> Volume:
        """Make a volume ``size`` GiB large, attached or not, and wait for that."""
        try:
            self._act(f"/volumes/{volume_id}", "os-extend", {"new_size": size}, 202)
        except Exception as error:
            # It may be growing, or have grown, by a request whose response was lost.
            if status_of(error) != 400:
                raise
        volume = self.wait(self.volume(volume_id), lambda found: found.status != "extending", "growing")
        if volume.size < size:
            raise StoreError(f"volume {volume_id} could not be grown to {size} GiB; it is {volume.status}")
        return volume

    def set_readonly(self, volume_id: str) -> None:
        """Have it attached read-only from now on; it must not be attached."""
        self._act(f"/volumes/{volume_id}", "os-update_readonly_flag", {"readonly": True}, 202)

    def delete(self, volume_id: str) -> None:
        """Ask for its removal."""
        self._send("DELETE", f"/volumes/{volume_id}", 202)

    def wait(self, found: Volume, arrived: Callable[[Volume], bool], what: str) -> Volume:
        """A volume, last seen as ``found``, once it has ``arrived``.

        Raises NotFound, or RemoteServiceUnavailable if it takes too long.
        """
        looks = self._looks(found.id, what)
        while not arrived(found):
            next(looks)
            found = self.volume(found.id)
        return found

    def wait_until_gone(self, volume_id: str) -> None:
        """Until a volume whose deletion was asked for just now is no more."""
        for _ in self._looks(volume_id, "deleting"):
            found = self.look_at(volume_id)
            if found is None:
                return
            if found.status == "error_deleting":
                raise StoreError(
                    f"Cinder could not delete volume {volume_id}; see the log of cinder-volume, and have an "
                    "administrator reset its state (openstack volume set --state available) to try again"
                )
            if found.status not in LEAVING:
                # Ceph takes a client that was killed for alive for another 30 seconds.
                raise InUseByStore(f"volume {volume_id} is in use below Cinder: a client has it open, or had just now")

    def _looks(self, volume_id: str, what: str) -> Iterator[None]:
        """Whenever it is time to look at a volume again. What was asked for just now is not there yet."""
        end = time.monotonic() + self._timeout
        pause = _FIRST_LOOK
        while time.monotonic() + pause < end:
            time.sleep(within(pause))
            yield
            pause = min(pause * 1.5, _LONGEST_LOOK)
        raise RemoteServiceUnavailable(
            f"{what} volume {volume_id} takes longer than {self._timeout:g} s (cinder_state_transition_timeout); is "
            "cinder-volume running?",
            transient=False,
        )

    def has_snapshots(self, volume_id: str) -> bool:
        """Whether there are snapshots of a volume."""
        found = _list(self._get(f"/snapshots?volume_id={volume_id}"), "snapshots")
        # Some Cinders ignore a filter that their policy does not allow.
        return any(isinstance(each, Mapping) and each.get("volume_id") == volume_id for each in found)

    def room(self) -> tuple[int, int] | None:
        """GiB of the project's quota that are free and that there are in all; None without a limit."""
        absolute = self._ask("GET", "/limits", 200, "limits").get("absolute")
        if not isinstance(absolute, Mapping):
            raise _senseless("limits")
        total, used = absolute.get("maxTotalVolumeGigabytes"), absolute.get("totalGigabytesUsed")
        if not isinstance(total, int) or not isinstance(used, int) or total < 0:
            return None
        return max(total - used, 0), total

    # -- Attachments --------------------------------------------------------------------------------------------------

    def reserve(self, volume_id: str, mode: str) -> str:
        """The id of a new attachment ('rw' or 'ro'), connected to nothing yet; nobody can delete the volume now."""
        wanted = {"volume_uuid": volume_id, "connector": None, "mode": mode}
        found = self._ask("POST", "/attachments", 200, "attachment", {"attachment": wanted})
        if not is_volume_id(found.get("id")):
            raise _senseless("an attachment")
        return str(found["id"])

    def connect(self, attachment_id: str, connector: Mapping[str, Any]) -> Mapping[str, Any]:
        """Connect it to this host; returns how the volume is reached (``connection_info``)."""
        body = {"attachment": {"connector": dict(connector)}}
        found = self._ask("PUT", f"/attachments/{attachment_id}", 200, "attachment", body).get("connection_info")
        if not isinstance(found, Mapping) or not isinstance(found.get("driver_volume_type"), str):
            raise _senseless("how a volume is reached")
        return found

    def complete(self, attachment_id: str) -> None:
        """The volume is in use from now on."""
        self._act(f"/attachments/{attachment_id}", "os-complete", None, 204)

    def attachments(self, volume_id: str) -> list[AttachmentState]:
        """All attachments of a volume, those that are only reserved, too."""
        found = _list(self._get(f"/attachments?volume_id={volume_id}"), "attachments")
        known = [each for each in found if isinstance(each, Mapping) and each.get("volume_id") == volume_id]
        return [
            AttachmentState(
                str(each.get("id")), volume_id, each.get("status") == "reserved" and not each.get("instance")
            )
            for each in known
            if is_volume_id(each.get("id"))
        ]

    def connection_info(self, attachment_id: str) -> Mapping[str, Any] | None:
        """How the volume of an attachment is reached; None if there is no such attachment, or it is not connected."""
        found = (self._find(f"/attachments/{attachment_id}", "attachment") or {}).get("connection_info")
        return found if isinstance(found, Mapping) and found.get("driver_volume_type") else None

    def detach(self, attachment_id: str) -> None:
        """End an attachment; nothing to do if there is none."""
        try:
            _list(self._send("DELETE", f"/attachments/{attachment_id}", 200), "attachments")
        except Exception as error:
            if not _is_missing(error):
                raise

    def status_of(self, error: BaseException) -> int | None:
        """The HTTP status of an error of the client; None where it has none."""
        return status_of(error)

    def delete_with_attachments(self, volume_id: str) -> None:
        """Delete a volume that nobody else knows, with its attachments; nothing to do if it is gone. Does not wait."""
        with contextlib.suppress(NotFound):
            found = self.wait(self.volume(volume_id), lambda found: found.status != "creating", "making")
            if found.status not in ("available", "error"):
                for attachment in self.attachments(volume_id):
                    self.detach(attachment.id)
                settled = ("available", "error", "error_extending")
                self.wait(self.volume(volume_id), lambda found: found.status in settled, "detaching")
            self.delete(volume_id)

    # -- One request --------------------------------------------------------------------------------------------------

    def _get(self, path: str) -> Mapping[str, Any]:
        return self._send("GET", path, 200)

    def _find(self, path: str, key: str) -> Mapping[str, Any] | None:
        """What is there, None if there is nothing."""
        try:
            found: Mapping[str, Any] = self._ask("GET", path, 200, key)
        except Exception as error:
            if _is_missing(error):
                return None
            raise
        return found

    def _act(self, path: str, action: str, what: Mapping[str, Any] | None, status: int) -> None:
        self._send("POST", f"{path}/action", status, {action: what})

    def _ask(self, method: str, path: str, status: int, key: str, body: Any = None) -> Any:
        """What a response has under ``key``."""
        document = self._send(method, path, status, body)
        if not isinstance(document.get(key), Mapping):
            raise _senseless(f"what was asked for ({key})")
        return document[key]

    def _send(self, method: str, path: str, status: int, body: Any = None) -> Mapping[str, Any]:
        """One request; its response has ``status``, or cinderclient's exception for what Cinder says is raised."""
        from cinderclient import exceptions

        arguments: dict[str, Any] = {} if body is None else {"body": body}
        # Nothing is waited for longer than this thread has left.
        arguments["timeout"] = within(self._client.session.timeout)
        # A token may have to be got for it before.
        with sensible():
            response, document = self._client.request(path, method, authenticated=True, raise_exc=False, **arguments)
        self._last = response.headers
        if response.status_code == status:
            return document if isinstance(document, Mapping) else {}
        if not is_proven(response.status_code, document):
            raise RemoteServiceUnavailable(
                f"what answered {response.status_code} to {method} is not Cinder: a proxy, a login page or a portal"
            )
        raise exceptions.from_response(response, document if is_explained(document) else None)


def _is_missing(error: Exception) -> bool:
    return status_of(error) == 404


def _list(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key)
    if not isinstance(found, list):
        raise _senseless(f"a list of {key}")
    return found


def _volume(found: Any) -> Volume:
    try:
        metadata = {str(key): str(value) for key, value in found["metadata"].items()}
        created = _posix(found["created_at"])
        volume = Volume(
            found["id"],
            str(found["status"]),
            int(found["size"]),
            found.get("volume_type"),
            metadata,
            created,
            _posix(found["updated_at"]) if found.get("updated_at") else created,
            found.get("multiattach") is True,
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise _senseless("a volume") from None
    if not is_volume_id(volume.id):
        raise _senseless("a volume")
    return volume


def _posix(moment: str) -> float:
    return posix_seconds(datetime.datetime.fromisoformat(moment))


def _senseless(what: str) -> RemoteServiceUnavailable:
    return RemoteServiceUnavailable(f"Cinder, or what stands before it, sent no sensible response about {what}")


# -- Who asks ---------------------------------------------------------------------------------------------------------


def has_service_user(name: str, conf: Options) -> bool:
    """Whether the options name a user of the store's own; raises BadStoreConfiguration for half of one."""
    needed = _APPLICATION if conf.cinder_store_application_credential_id else _USER
    missing = [option for option in needed if not getattr(conf, option)]
    if missing and len(missing) < len(needed):
        raise misconfigured(name, missing[0], "a user of the store's own needs it, too")
    return not missing


class Sessions:
    """What makes clients of Cinder. Safe to use from many threads; making one opens no connection."""

    def __init__(self, name: str, conf: Options) -> None:
        parts = str(conf.cinder_catalog_info).split(":")
        if len(parts) != 3 or not parts[0] or not parts[2]:
            raise misconfigured(name, "cinder_catalog_info", "it is type:name:interface, as volumev3::publicURL")
        template: str | None = conf.cinder_endpoint_template
        for old in ("%(tenant)s", "%(tenant_id)s"):
            template = template.replace(old, "%(project_id)s") if template else None
        self._endpoint = Endpoint(
            parts[0],
            parts[2],
            conf.cinder_os_region_name,
            template,
            "cinder_catalog_info and cinder_os_region_name",
            service_name=parts[1] or None,
            aliases=_TYPES if parts[0] in _TYPES else (),
        )
        self._conf = conf
        self._verify: bool | str = conf.cinder_ca_certificates_file or True
        if conf.cinder_api_insecure:
            self._verify = False
        else:
            check_certificates(conf.cinder_ca_certificates_file, name, "cinder_ca_certificates_file")
        self._timeout = min(conf.cinder_read_timeout, conf.transfer_timeout)
        #: Below the sessions of all requests: it knows no token, and has the connections.
        self._http: Any = None

    def forget_parent(self) -> None:
        """In a forked child: connections are the parent's."""
        self._http = None

    def of_service(self) -> Any:
        """A client as the store's own user."""
        from keystoneauth1.identity import v3

        conf = self._conf
        url = _with_version(conf.cinder_store_auth_address)
        if conf.cinder_store_application_credential_id:
            return self._client(
                v3.ApplicationCredential(
                    url,
                    application_credential_id=conf.cinder_store_application_credential_id,
                    application_credential_secret=conf.cinder_store_application_credential_secret,
                )
            )
        return self._client(
            v3.Password(
                url,
                username=conf.cinder_store_user_name,
                password=conf.cinder_store_password,
                project_name=conf.cinder_store_project_name,
                user_domain_name=conf.cinder_store_user_domain_name,
                project_domain_name=conf.cinder_store_project_domain_name,
            )
        )

    def of_request(self, context: Context | None) -> Any:
        """A client as the user of a request; raises Forbidden without a token."""
        from keystoneauth1 import token_endpoint

        token = getattr(context, "auth_token", None)
        if not token:
            raise Forbidden(
                "a cinder store without a user of its own (cinder_store_user_name) needs the context of a request with "
                "its token"
            )
        url = self._endpoint.of_request(context)
        if self._http is None:
            self._http = self._new_http()
        return self._client(token_endpoint.Token(url, str(token)), url, self._http)

    def _new_http(self) -> Any:
        """Below a session of keystoneauth: it keeps the deadline of the thread, which keystoneauth knows nothing of."""
        from storelib.transfer.http.sessions import new_session

        return new_session(self._verify)

    def _client(self, plugin: Any, url: str | None = None, below: Any = None) -> Any:
        from cinderclient import client
        from keystoneauth1 import session

        opened = session.Session(
            plugin,
            verify=self._verify,
            timeout=self._timeout,
            session=below or self._new_http(),
            # A token goes to the address it is for, not to where a captive portal redirects.
            redirect=False,
            user_agent=f"storelib/{__version__}",
        )
        fixed = self._endpoint.fixed
        if url is None and fixed:
            with sensible():
                url = fixed.replace("%(project_id)s", opened.get_project_id() or "") if "%(" in fixed else fixed
        return client.Client(
            MICROVERSION,
            session=opened,
            service_type=self._endpoint.service_type,
            service_name=self._endpoint.service_name,
            interface=self._endpoint.interface.removesuffix("URL"),
            region_name=self._endpoint.region,
            endpoint_override=url,
        ).client


def _with_version(url: str) -> str:
    url = url.rstrip("/")
    return url if url.endswith(("/v3", "/v2.0")) else f"{url}/v3"
