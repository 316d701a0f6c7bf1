# SPDX-License-Identifier: Apache-2.0
"""Datastores: the datastores of one store as its other parts see them: which has room, what files are in it.

A file is named by its datastore and the names on the way to it. Nothing here knows of temporary names. All of it goes
by a Session, one login to a vCenter for all threads of a store, made at first use and anew when vCenter has ended it.
pyVmomi speaks SOAP over the store's own connections; files travel over the same, with the same cookies.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import math
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote as decoded

from pyVmomi import vim, vmodl
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import F_OPTIONAL, ManagedObject

from storelib.drivers.vmware.errors import NothingTold, NotSoap, is_fault, is_session_lost, storelib_error
from storelib.drivers.vmware.location import VmwareLocation
from storelib.drivers.vmware.options import Settings, Target
from storelib.exceptions import (
    BadStoreConfiguration,
    RemoteServiceUnavailable,
    StorageFull,
    TransferTimeout,
    misconfigured,
)
from storelib.transfer import deadlines
from storelib.transfer.certificates import tls_context
from storelib.transfer.contract import MiB, Options
from storelib.transfer.forking import forget_in_child
from storelib.transfer.http.server import Connection, Connections, FileUpload, HttpError, Response, Server
from storelib.transfer.live import LiveAdds
from storelib.transfer.places import everywhere
from storelib.transfer.retry import mapped
from storelib.uris import quote

T = TypeVar("T")

#: Seconds for which it is believed how much room the datastores have.
FRESH = 30.0

#: Bytes that a datastore should have for an image of unknown size: with less it is as good as full.
_SOME_ROOM = 16 * MiB

#: Characters that mean something in the pattern of a search, of vCenter or of the simulator, or that XML cannot carry.
_SPECIAL = re.compile(r"[*?\[\]\\\uFFFE\uFFFF]")

#: What every vCenter since 5.5 speaks, newer ones too.
_VERSION = "vim.version.version9"
_SOAP = ("text/xml", "application/xml", "application/soap+xml")
#: What of a vCenter is asked.
_MANAGERS = ("fileManager", "propertyCollector", "searchIndex", "sessionManager")
#: Seconds between the first two looks at a task; each pause is twice the one before.
_FIRST_PAUSE = 0.02
#: All of a task would include what it is about, which the simulator of govmomi gives a wrong type.
_OF_TASK = ("info.state", "info.error", "info.result", "info.progress")
#: Seconds after which a session is shown that its client is there; vCenter ends it after 30 minutes without a call.
_KEEP_ALIVE = 300.0
#: Seconds that saying goodbye may take.
_GOODBYE = 2.0


class Handles(NamedTuple):
    """A datastore and its datacenter as managed objects."""

    datacenter: Any
    datastore: Any
    browser: Any


class Room(NamedTuple):
    """What a datastore tells of itself, in bytes."""

    #: It can be reached, and is not in maintenance.
    usable: bool
    accessible: bool
    free: int
    total: int


@dataclass(frozen=True)
class File:
    """One file or folder; two files with the same size and time are the same one."""

    name: str
    size: int
    #: POSIX seconds, of the last write. Some vCenters tell whole seconds only; 0 where they tell nothing.
    modified: float
    is_folder: bool = False

    @property
    def version(self) -> str:
        """Another one for another file of this name."""
        return f"{self.modified:.6f}-{self.size}"


class Datastores:
    """Safe to use from many threads; opens no connection before it is first used."""

    def __init__(self, conf: Options, store_name: str) -> None:
        self.settings = Settings.from_conf(conf, store_name)
        self.targets = self.settings.targets
        self.session = Session(conf, self.settings, store_name)
        self.store_name = store_name
        self._lock = threading.Lock()
        self._handles: dict[Target, Handles] = {}
        #: What is on its way, by its temporary name, so that gc leaves it alone.
        self.live: LiveAdds[Any] = LiveAdds()
        # Directories that were made, or found, with all above them.
        self._made: set[tuple[Target, tuple[str, ...]]] = set()
        self._rooms: tuple[float, dict[Target, Room]] | None = None
        forget_in_child(self)

    def forget_parent(self) -> None:
        """In a forked child: do not wait for a lock that the parent's threads held."""
        self._lock = threading.Lock()

    # -- Where images are -------------------------------------------------------------------------------------

    @property
    def directory(self) -> tuple[str, ...]:
        """The names on the way to the images."""
        return tuple(self.settings.directory.split("/")) if self.settings.directory else ()

    def location(self, target: Target, image_id: str) -> VmwareLocation:
        """The location of an image in a datastore."""
        settings = self.settings
        return VmwareLocation(
            settings.host, settings.port, settings.directory, image_id, target.datacenter, target.name
        )

    def target_of(self, location: VmwareLocation) -> Target | None:
        """The datastore that a location is in; None for any other."""
        place = (location.datacenter, location.datastore)
        return next((each for each in self.targets if (each.datacenter, each.name) == place), None)

    # -- Room -------------------------------------------------------------------------------------------------

    def choose(self, size: int | None) -> Target:
        """The datastore for a new image; raises StorageFull. ``size`` None: any, if none has much room."""
        wanted = _SOME_ROOM if size is None else size
        found = self._best(self.rooms(), wanted)
        if found is None:
            found = self._best(self.rooms(refresh=True), wanted)
        if found is None and size is None:
            found = self._best(self.rooms(), 0)
        if found is None:
            raise StorageFull(f"store {self.store_name}: no datastore has room for {size} bytes")
        return found

    def _best(self, rooms: dict[Target, Room], size: int) -> Target | None:
        usable = [target for target in self.targets if rooms[target].usable]
        if not usable:
            why = f"store {self.store_name}: no datastore can be used: not accessible or in maintenance"
            raise RemoteServiceUnavailable(why, transient=False)
        fitting = [target for target in usable if rooms[target].free >= size]
        return max(fitting, key=lambda target: (target.weight, rooms[target].free), default=None)

    def rooms(self, *, refresh: bool = False) -> dict[Target, Room]:
        """What all datastores tell of themselves, now or a moment ago; ``refresh``: they look themselves before."""
        known = self._rooms
        if known is not None and not refresh and time.monotonic() - known[0] < FRESH:
            return known[1]
        handles = [self.handles(target) for target in self.targets]
        if refresh:
            self._refresh(handles)
        told = self._asked(
            lambda: self.session.properties([each.datastore for each in handles], "summary"), *self.targets
        )
        rooms = {target: _room(each["summary"]) for target, each in zip(self.targets, told, strict=True)}
        self._rooms = (time.monotonic(), rooms)
        return rooms

    def forget_rooms(self) -> None:
        """Ask all datastores before the next image."""
        self._rooms = None

    def _refresh(self, handles: Sequence[Handles]) -> None:
        for each in handles:
            # Those that cannot look say what they knew; and the simulator looks, but its response is empty.
            with contextlib.suppress(Exception):
                self.session.call(functools.partial(_refresh, each.datastore))

    # -- Files by HTTP ----------------------------------------------------------------------------------------

    def get(self, location: VmwareLocation, wanted: str) -> Response:
        """A range of an image; the response is any but that there is no session."""
        target = Target(location.datacenter, location.datastore)
        return self.session.ask("GET", _url(target, (*self.directory, location.image_id)), {"Range": wanted})

    def upload(self, target: Target, names: Sequence[str], size: int | None) -> FileUpload:
        """A PUT of a new file, ready for its bytes, in a directory that is made if need be; it would overwrite."""
        return self._in_directory(target, names, lambda: self.session.upload(_url(target, names), size))

    def size(self, target: Target, names: Sequence[str]) -> int | None:
        """Bytes of a file; None where there is none."""
        response = self.session.ask("HEAD", _url(target, names))
        response.discard()
        if response.status == 404:
            return None
        if response.status != 200:
            raise HttpError("HEAD", response.status)
        # A page for people has a size, too: then it is the datastore itself that is asked.
        if response.length is None or response.headers.get_content_type() == "text/html":
            found = self.find(target, names)
            return None if found is None or found.is_folder else found.size
        return response.length

    # -- Files by tasks ---------------------------------------------------------------------------------------

    def find(self, target: Target, names: Sequence[str]) -> File | None:
        """What is called so; None where there is nothing."""
        *directory, name = names
        found = self.files(target, directory, _SPECIAL.sub("?", name))
        return next((file for file in found if file.name == name), None)

    def files(self, target: Target, directory: Sequence[str], pattern: str = "*") -> list[File]:
        """All in a directory, folders too; nothing where there is no such directory."""
        spec = vim.host.DatastoreBrowser.SearchSpec(
            matchPattern=[pattern],
            details=vim.host.DatastoreBrowser.FileInfo.Details(
                fileSize=True, modification=True, fileType=True, fileOwner=False
            ),
        )

        def start(login: Login, handles: Handles) -> Any:
            return login.object(handles.browser).SearchDatastore_Task(_path(target, directory), spec)

        try:
            found = self._run(start, target)
        except vim.fault.FileNotFound:
            return []
        if not isinstance(found, vim.host.DatastoreBrowser.SearchResults) or not all(each.path for each in found.file):
            raise NotSoap("something else than files")
        return [_file(each) for each in found.file]

    def everywhere(self, look: Callable[[Target], Iterable[T]]) -> Iterator[T]:
        """What ``look`` finds in all datastores; one that is away keeps none of the others, and is told in the end."""

        def found(target: Target) -> list[T]:
            return mapped(lambda: list(look(target)), storelib_error, f"store {self.store_name}: {target}")

        return everywhere(functools.partial(found, target) for target in self.targets)

    def _in_directory(self, target: Target, names: Sequence[str], ask: Callable[[], T]) -> T:
        """``ask()`` for a new file, whose directory is made; once more where another client has removed that since."""
        directory = tuple(names[:-1])
        believed = (target, directory) in self._made
        self._make_directory(target, directory)
        try:
            return ask()
        except Exception as error:
            self._made.clear()
            gone = is_fault(error, "FileNotFound") or _is_missing(error)
            if not believed or not gone:
                raise
        self._make_directory(target, directory)
        return ask()

    def _make_directory(self, target: Target, names: tuple[str, ...]) -> None:
        """Make a directory with all above it, unless it is there."""
        if (target, names) in self._made:
            return
        handles = self.handles(target)

        def make(login: Login) -> None:
            login.content.fileManager.MakeDirectory(_path(target, names), handles.datacenter, True)

        with contextlib.suppress(vim.fault.FileAlreadyExists):
            self._asked(lambda: self.session.call(make), target)
        self._made.add((target, names))

    def move(self, target: Target, source: Sequence[str], names: Sequence[str]) -> None:
        """Give a file another name; raises FileAlreadyExists."""

        def start(login: Login, handles: Handles) -> Any:
            return login.content.fileManager.MoveDatastoreFile_Task(
                _path(target, source), handles.datacenter, _path(target, names), handles.datacenter, False
            )

        self._run(start, target)

    def copy(
        self, origin: Target, source: Sequence[str], target: Target, names: Sequence[str], allowance: float
    ) -> None:
        """Copy a file; raises FileAlreadyExists. ``allowance``: seconds more than usual without any progress."""
        begun = self.handles(origin)

        def start(login: Login, handles: Handles) -> Any:
            return login.content.fileManager.CopyDatastoreFile_Task(
                _path(origin, source), begun.datacenter, _path(target, names), handles.datacenter, False
            )

        self._in_directory(target, names, lambda: self._run(start, target, allowance))

    def delete(self, target: Target, names: Sequence[str]) -> None:
        """Remove a file, or a folder with all in it; raises FileNotFound."""

        def start(login: Login, handles: Handles) -> Any:
            return login.content.fileManager.DeleteDatastoreFile_Task(_path(target, names), handles.datacenter)

        self._run(start, target)

    def _run(self, start: Any, target: Target, allowance: float = 0.0) -> Any:
        handles = self.handles(target)
        return self._asked(
            lambda: self.session.run(lambda login: start(login, handles), str(target), allowance), target
        )

    def _asked(self, ask: Any, *targets: Target) -> Any:
        """``ask()``; what is known of the datastores is forgotten where one has gone, or has another name now.

        As after it was mounted anew, or where another one was given its name.
        """
        try:
            return ask()
        except Exception as error:
            if is_fault(error, "ManagedObjectNotFound", "InvalidDatastore"):
                for target in targets:
                    self._handles.pop(target, None)
            raise

    # -- The inventory ----------------------------------------------------------------------------------------

    def handles(self, target: Target) -> Handles:
        """The managed objects of a datastore; raises BadStoreConfiguration where there is no such datastore."""
        with self._lock:
            if target not in self._handles:
                self._handles[target] = self._look_up(target)
            return self._handles[target]

    def _look_up(self, target: Target) -> Handles:
        path = "/".join(map(_inventory_name, target.datacenter.split("/")))
        datacenter = self.session.call(lambda login: login.content.searchIndex.FindByInventoryPath(path))
        if not isinstance(datacenter, vim.Datacenter):
            raise self._misconfigured(f"vCenter knows no datacenter {target.datacenter}")
        [told] = self.session.properties([datacenter], "datastore")
        stores = list(told["datastore"])
        named = self.session.properties(stores, "name", "browser") if stores else []
        for store, each in zip(stores, named, strict=True):
            if decoded(each["name"]) == decoded(_inventory_name(target.name)):
                return Handles(datacenter, store, each["browser"])
        raise self._misconfigured(f"there is no datastore {target.name} in datacenter {target.datacenter}")

    def _misconfigured(self, why: str) -> BadStoreConfiguration:
        return misconfigured(self.store_name, "vmware_datastores", why)


def _is_missing(error: Exception) -> bool:
    """A PUT was refused because its directory is not there; 404 to a call says nothing of files."""
    return isinstance(error, HttpError) and (error.method, error.status) == ("PUT", 404)


def _inventory_name(name: str) -> str:
    """A name as the inventory has it, where ``%``, ``/`` and a backslash are percent-encoded."""
    return re.sub(r"%(?![0-9A-Fa-f]{2})", "%25", name).replace("\\", "%5c")


def _path(target: Target, names: Sequence[str]) -> str:
    path = "/".join(names)
    # Of a blank at either end the simulator would make nothing; this is the same file.
    if path[:1].isspace():
        path = f"./{path}"
    if path[-1:].isspace():
        path = f"{path}/."
    return f"[{target.name}] {path}"


def _url(target: Target, names: Sequence[str]) -> str:
    path = "/".join(map(quote, names))
    return f"/folder/{path}?dcPath={quote(target.datacenter)}&dsName={quote(target.name)}"


def _room(summary: Any) -> Room:
    accessible = bool(summary.accessible)
    resting = (summary.maintenanceMode or "normal") != "normal"
    return Room(accessible and not resting, accessible, int(summary.freeSpace or 0), int(summary.capacity or 0))


def _refresh(datastore: Any, login: Login) -> None:
    login.object(datastore).RefreshDatastore()


def _file(info: Any) -> File:
    modified = info.modification.timestamp() if info.modification else 0.0
    is_folder = isinstance(info, vim.host.DatastoreBrowser.FolderInfo)
    return File(info.path, int(info.fileSize or 0), modified, is_folder)


# -- The session ------------------------------------------------------------------------------------------------------


class Session:
    """Safe to use from many threads; opens no connection before it is first used, and forgets all in a forked child."""

    def __init__(self, conf: Options, settings: Settings, store_name: str) -> None:
        self._conf = conf
        self._store_name = store_name
        self._connections = Connections(_server(conf, settings, store_name))
        self._lock = threading.Lock()
        self._logins: list[Login] = []
        self._used = time.monotonic()
        #: Seconds that the quickest response about a file took: how far away vCenter is, however busy.
        self.latency = math.inf
        forget_in_child(self)
        weakref.finalize(self, _log_out, self._logins)

    # -- What vCenter is asked ----------------------------------------------------------------------------------

    def call(self, ask: Callable[[Login], T]) -> T:
        """``ask(login)``, and once more with a new login where the session turns out to have ended."""
        login = self._login()
        try:
            return ask(login)
        except Exception as error:
            if not is_session_lost(error):
                raise
        return ask(self._login(instead_of=login))

    def run(self, start: Callable[[Login], Any], subject: str, allowance: float = 0.0) -> Any:
        """Start a task, wait for it and return its result; raises what it ended with.

        TransferTimeout after ``transfer_timeout`` and ``allowance`` seconds without progress.
        """
        task = self.call(start)
        longest = self._conf.transfer_timeout + allowance
        end, pause, progress = time.monotonic() + longest, _FIRST_PAUSE, None
        while True:
            [told] = self.properties([task], *_OF_TASK)
            if told["info.state"] == "success":
                return told.get("info.result")
            if told["info.state"] == "error":
                raise told.get("info.error") or NothingTold("info.error")
            if told.get("info.progress") != progress:
                progress, end = told.get("info.progress"), time.monotonic() + longest
                deadlines.progress()
            if time.monotonic() > end:
                self._cancel(task)
                raise TransferTimeout(f"{subject}: a task of vCenter does not end")
            time.sleep(deadlines.within(pause))
            pause = min(2 * pause, self._conf.vmware_task_poll_interval)

    def properties(self, objects: Sequence[Any], *paths: str) -> list[dict[str, Any]]:
        """Properties of managed objects of one kind; raises NothingTold where the first of them is left out.

        And NotSoap where one is something else than it has to be.
        """
        collector = vmodl.query.PropertyCollector
        spec = collector.FilterSpec(
            objectSet=[collector.ObjectSpec(obj=each) for each in objects],
            propSet=[collector.PropertySpec(type=type(objects[0]), pathSet=list(paths))],
        )

        def retrieve(login: Login) -> list[dict[str, Any]]:
            found = login.content.propertyCollector.RetrieveContents([spec]) or ()
            values = {each.obj._moId: {told.name: told.val for told in each.propSet} for each in found if each.obj}
            ordered = [values.get(each._moId, {}) for each in objects]
            if not all(paths[0] in told for told in ordered):
                raise NothingTold(paths[0])
            kinds = {path: _kind_of(type(objects[0]), path) for path in paths}
            if not all(_is_a(value, kinds.get(path)) for told in ordered for path, value in told.items()):
                raise NotSoap("a property of another kind")
            return ordered

        return self.call(retrieve)

    def now(self) -> float:
        """What time it is for vCenter, in POSIX seconds."""
        moment = self.call(lambda login: login.instance.CurrentTime())
        return float(moment.timestamp())

    def keep_alive(self) -> None:
        """Call now and then while a long transfer is under way: the session must not end for want of calls."""
        if time.monotonic() - self._used > _KEEP_ALIVE:
            # What is wrong with it will show when the transfer has ended, and may be over by then.
            with contextlib.suppress(Exception):
                self.now()

    # -- Files ------------------------------------------------------------------------------------------------

    def ask(self, method: str, target: str, headers: Mapping[str, str] | None = None) -> Response:
        """A request about a file; the response is any but that there is no session."""

        def send(login: Login) -> Response:
            response = self._connections.ask(method, target, {**(headers or {}), **login.cookies})
            self.latency = min(self.latency, response.seconds)
            if response.status == 401:
                response.discard()
                raise HttpError(method, response.status)
            return response

        return self.call(send)

    def upload(self, target: str, size: int | None) -> FileUpload:
        """A PUT that the server is ready to take the body of; where it ends with a 401, ``doubt`` its session."""

        def begin(login: Login) -> FileUpload:
            upload = FileUpload(self._connections, target, login.cookies, size)
            upload.login = login
            try:
                upload.begin()
            except BaseException:
                upload.close()
                raise
            return upload

        return self.call(begin)

    # -- Logging in -------------------------------------------------------------------------------------------

    def _login(self, instead_of: Login | None = None) -> Login:
        self._used = time.monotonic()
        with self._lock:
            if not self._logins or self._logins[0] is instead_of:
                login = Login(self._connections, self._conf.vmware_server_username, self._conf.vmware_server_password)
                self._logins[:] = [login]
                if instead_of is not None:
                    # Where it was only doubted: a vCenter has only so many.
                    instead_of.end()
            return self._logins[0]

    def doubt(self, upload: FileUpload) -> None:
        """Log in anew before the next question, unless that was done since: the login of this upload was refused."""
        with self._lock:
            if self._logins and self._logins[0] is upload.login:
                self._logins.clear()
        upload.login.end()

    def _cancel(self, task: Any) -> None:
        with contextlib.suppress(Exception):
            self.call(lambda login: login.object(task).CancelTask())

    def forget_parent(self) -> None:
        """In a forked child: log in anew; the parent's session is not the child's to end."""
        self._lock = threading.Lock()
        self._logins.clear()


class Login:
    """One session of vCenter with its cookies."""

    def __init__(self, connections: Connections, user: str, password: str) -> None:
        self.process = os.getpid()
        self._jar: dict[str, str] = {}
        self._connections = connections
        self.stub = _Stub(connections, self._jar)
        self.instance: Any = vim.ServiceInstance("ServiceInstance", self.stub)
        self.content: Any = self.instance.RetrieveContent()
        if not all(getattr(self.content, name) for name in _MANAGERS):
            raise NotSoap("a service without what every vCenter has")
        self.content.sessionManager.Login(user, password)

    @property
    def cookies(self) -> dict[str, str]:
        """The header that has all of them."""
        return _cookie_header(self._jar)

    def object(self, known: Any) -> Any:
        """A managed object, asked through this session."""
        return type(known)(known._moId, self.stub)

    def end(self) -> None:
        """End the session, unless vCenter has done so."""
        with contextlib.suppress(Exception), deadlines.at_most(_GOODBYE):
            self.content.sessionManager.Logout()

    def leave(self) -> None:
        """End the session and close the connections."""
        self.end()
        self._connections.drop_idle()


def _log_out(logins: list[Login]) -> None:
    """When the session's owner is gone, or the process ends; in a child, not the parent's."""
    for login in logins:
        if login.process == os.getpid():
            login.leave()


# -- SOAP over our own connections ----------------------------------------------------------------------------


class _Stub(SoapStubAdapter):  # type: ignore[misc]
    """What pyVmomi sends its calls through: it would trust other certificates, wait for ever, and send one cookie."""

    def __init__(self, connections: Connections, jar: dict[str, str]) -> None:
        super().__init__(host="vcenter", version=_VERSION, acceptCompressedResponses=False)
        self._own = connections
        self._jar = jar

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:  # noqa: N802, N803
        try:
            result = super().InvokeMethod(mo, info, args, outerStub)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # So pyVmomi fails at XML that is no response to the call.
            if isinstance(error, OSError):  # that a certificate is not trusted is a ValueError, too
                raise
            raise NotSoap("XML that is no response to the call") from error
        if not (_is_a(result, info.result) or (result is None and info.resultFlags & F_OPTIONAL)):
            raise NotSoap("a response to another call")
        return result

    def GetConnection(self) -> _SoapConnection:  # noqa: N802
        return _SoapConnection(self._own.take(), self._jar)

    def ReturnConnection(self, conn: _SoapConnection) -> None:  # noqa: N802
        self._own.give_back(conn.connection)

    def DropConnections(self) -> None:  # noqa: N802
        self._own.drop_idle()


class _SoapConnection:
    """A connection as pyVmomi uses it."""

    def __init__(self, connection: Connection, jar: dict[str, str]) -> None:
        self.connection = connection
        self._jar = jar

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> None:
        sent = {name: value for name, value in headers.items() if name != "Cookie"}
        self.connection.request(method, path, body, {**sent, **_cookie_header(self._jar)})

    def getresponse(self) -> Any:
        response = self.connection.getresponse()
        try:
            _check_soap(response)
        except BaseException:
            response.close()
            self.close()
            raise
        for cookie in response.headers.get_all("Set-Cookie", ()):
            name, _, value = cookie.partition(";")[0].partition("=")
            self._jar[name.strip()] = value.strip()
        # Some versions of pyVmomi fail where there are several.
        del response.headers["Set-Cookie"]
        return response

    def close(self) -> None:
        self.connection.close()


def _check_soap(response: http.client.HTTPResponse) -> None:
    """Raise unless it is a response to a call, successful or not: pyVmomi takes a page for an empty response."""
    if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.INTERNAL_SERVER_ERROR):
        raise HttpError("POST", response.status)
    if response.headers.get_content_type() not in _SOAP:
        raise NotSoap("a page, or something else that is no response to a call")


def _kind_of(managed: Any, path: str) -> Any:
    """What a property of this kind of managed object is."""
    for name in path.split("."):
        managed = managed._GetPropertyInfo(name).type
    return managed


def _is_a(value: Any, kind: Any) -> bool:
    """Whether it is of that kind. Of references in a list pyVmomi knows that they are some, and nothing more."""
    if kind is None:
        return False
    wanted = getattr(kind, "Item", None)
    if wanted is None or not issubclass(wanted, ManagedObject):
        return isinstance(value, kind)
    return isinstance(value, list) and all(isinstance(each, wanted) for each in value)


def _cookie_header(jar: Mapping[str, str]) -> dict[str, str]:
    cookies = "; ".join(f"{name}={value}" for name, value in dict(jar).items())
    return {"Cookie": cookies} if cookies else {}


def _server(conf: Options, settings: Settings, store_name: str) -> Server:
    """The vCenter; raises BadStoreConfiguration for a file of certificates that cannot be used."""
    # No longer than the whole transfer may stand still.
    timeouts = (
        min(seconds, conf.transfer_timeout) for seconds in (conf.vmware_connect_timeout, conf.vmware_read_timeout)
    )
    insecure = conf.vmware_insecure or settings.thumbprint is not None
    context = tls_context(conf.vmware_ca_file, store_name, "vmware_ca_file", insecure=insecure)
    return Server(settings.host, settings.port, context, settings.thumbprint, *timeouts)
