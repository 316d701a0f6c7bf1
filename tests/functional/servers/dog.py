# SPDX-License-Identifier: Apache-2.0
"""A stand-in for Sheepdog's ``dog vdi`` command whose cluster is a directory, and Sheepdog, which gives tests either
it or a real cluster (``STORELIB_TEST_SHEEPDOG=address:port`` with ``dog`` on PATH).

There is no package of the real server. Grammar, exit codes and silent hazards are those recorded from one: too little
input is filled up with zeros, too much is cut, as are names and tags of more than 255 bytes, ``delete`` always ends
with 0, two commands that create the same object lose data. Objects are shared by snapshots and clones and copied when
written, as there. Attributes belong to the number of a vdi and its name: a later vdi of that name gets both, and with
them what is left of the earlier one's; after a snapshot the working vdi has another number and none of them.

Files in the directory are switches: ``stopped`` makes every command wait as a stopped daemon does, ``dead`` refuses
connections, ``full`` has no room, ``deleting`` holds deletions half way, and ``lose-VERB`` loses one answer.
Imports are few: the program is started thousands of times.
"""

import fcntl
import marshal
import os
import sys
import time

K = 1024
LARGEST = 4 * K**4
LONGEST = 255
UNITS = {"K": K, "M": K**2, "G": K**3, "T": K**4}
FLAGS = {"-r", "-x", "-d"}
VALUES = {"-a", "-p", "-s", "-c"}


class Exit(Exception):
    """Ends the program."""

    def __init__(self, code, *complaints):
        self.code = code
        self.complaints = complaints


class DeadError(Exception):
    """There is no daemon."""


class Daemon:
    """The cluster in a directory: ``state`` has inodes by vid and attributes by vid and name, ``objects/`` the data."""

    def __init__(self, directory, shift):
        self.directory = directory
        self.shift = shift
        self._lock = None

    def path(self, *parts):
        return os.path.join(self.directory, *parts)

    def is_on(self, switch):
        return os.path.exists(self.path(switch))

    def contact(self):
        """What every request goes through."""
        while self.is_on("stopped"):
            time.sleep(0.01)
        if self.is_on("dead"):
            raise DeadError

    def __enter__(self):
        self.contact()
        self._lock = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            with open(self.path("state"), "rb") as file:
                self._before = file.read()
            self.inodes, self.attributes = marshal.loads(self._before)
        except FileNotFoundError:
            self._before, self.inodes, self.attributes = b"", {}, {}
        return self.inodes

    def __exit__(self, kind, error, trace):
        after = marshal.dumps((self.inodes, self.attributes))
        if kind is None and after != self._before:
            with open(self.path("state.new"), "wb") as file:
                file.write(after)
            os.rename(self.path("state.new"), self.path("state"))
        os.close(self._lock)

    def snapshot_of_state(self):
        with self as inodes:
            return inodes

    def object(self, vid, index):
        return self.path("objects", f"{vid:x}.{index}")

    def drop_unreferenced(self, inodes, objects):
        """Objects live as long as some inode refers to them."""
        alive = {(owner, index) for inode in inodes.values() for index, owner in inode["objects"].items()}
        for index, owner in objects.items():
            if (owner, index) not in alive:
                try:
                    os.unlink(self.object(owner, index))
                except FileNotFoundError:
                    pass


def find(inodes, name, tag=None):
    """The vid of a vdi or of one of its snapshots, by tag or number; raises Exit as the real one does."""
    for vid, inode in inodes.items():
        if inode["name"] != name or inode["snapshot"] != (tag is not None):
            continue
        if tag is None or tag in (inode["tag"], str(inode["number"])):
            return vid
    known = any(inode["name"] == name for inode in inodes.values())
    why = "Failed to find requested tag" if tag is not None and known else "No VDI found"
    raise Exit(1, f"Failed to open VDI {name} (snapshot id: 0 snapshot tag: {tag or ''}): {why}")


def new_inode(daemon, inodes, name, size, copies="1", base=None, number=1):
    """Make a vdi; its vid follows from its name."""
    if any(inode["name"] == name and not inode["snapshot"] for inode in inodes.values()):
        raise Exit(1, f"Failed to create VDI {name}: VDI exists already")
    vid = 0x811C9DC5
    for byte in os.fsencode(name):
        vid = ((vid ^ byte) * 0x01000193) & 0xFFFFFF
    while vid in inodes or not vid:
        vid = (vid + 1) & 0xFFFFFF
    inodes[vid] = {
        "name": name,
        "snapshot": False,
        "number": number,
        "size": size,
        "created": int(time.time()),
        "copies": copies,
        "tag": "",
        "parent": base or 0,
        "shift": inodes[base]["shift"] if base else daemon.shift,
        "objects": dict(inodes[base]["objects"]) if base else {},
    }
    return vid


def cut(text):
    """What of a name or tag arrives."""
    return text.encode("utf-8", "surrogateescape")[:LONGEST].decode("utf-8", "surrogateescape")


def size_of(text):
    unit = UNITS.get(text[-1:].upper(), 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isdigit():
        raise Exit(64, f"Invalid size '{text}'")
    return int(digits) * unit


def vdi_create(daemon, options, name, size=None):
    if size is None:
        # Only after it asked the daemon what it would need to know.
        daemon.contact()
        raise Exit(64, "Please specify the VDI size")
    bytes_ = size_of(size)
    if bytes_ > LARGEST:
        raise Exit(64, f"VDI size is larger than {LARGEST} bytes, please use '-y' to create a hyper volume")
    with daemon as inodes:
        new_inode(daemon, inodes, name, bytes_, options.get("-c", "1"))


def vdi_resize(daemon, options, name, size):
    bytes_ = size_of(size)
    with daemon as inodes:
        inode = inodes[find(inodes, name)]
        if bytes_ > LARGEST:
            raise Exit(64, "New VDI size is too large")
        if bytes_ < inode["size"]:
            raise Exit(64, "Shrinking VDIs is not implemented")
        inode["size"] = bytes_


def vdi_list(daemon, options, name=None):
    lines = []
    for vid, inode in daemon.snapshot_of_state().items():
        if name is not None and inode["name"] != name:
            continue
        flag = "s" if inode["snapshot"] else "c" if inode["number"] == 1 and inode["parent"] else "="
        shown = "".join(f"\\{letter}" if letter in " \t\v\f\r\n\\" else letter for letter in inode["name"])
        own = sum(owner == vid for owner in inode["objects"].values()) << inode["shift"]
        all_ = len(inode["objects"]) << inode["shift"]
        number = inode["number"] if inode["snapshot"] else 0
        lines.append(
            f"{flag} {shown} {number} {inode['size']} {own} {all_ - own} {inode['created']} {vid:x} "
            f"{inode['copies']} {inode['tag']} {inode['shift']}\n"
        )
    sys.stdout.write("".join(lines))


def vdi_snapshot(daemon, options, name):
    tag = options["-s"]
    if tag.isdigit():
        raise Exit(64, "Please specify a non-integer value for a snapshot tag name")
    with daemon as inodes:
        if any(each["name"] == name and each["snapshot"] and each["tag"] == tag for each in inodes.values()):
            raise Exit(1, f"Failed to create snapshot for {name}, maybe snapshot id (0) or tag ({tag}) is existed")
        vid = find(inodes, name)
        old = inodes[vid]
        old["tag"], old["snapshot"] = tag, True
        new_inode(daemon, inodes, name, old["size"], old["copies"], base=vid, number=old["number"] + 1)


def vdi_clone(daemon, options, source, target):
    with daemon as inodes:
        base = find(inodes, source, options["-s"])
        new_inode(daemon, inodes, target, inodes[base]["size"], inodes[base]["copies"], base=base)


def vdi_delete(daemon, options, name):
    try:
        with daemon as inodes:
            vid = find(inodes, name, options.get("-s"))
            # The data goes first. Meanwhile the vdi is there and reads as zeros.
            objects, inodes[vid]["objects"] = inodes[vid]["objects"], {}
            daemon.drop_unreferenced(inodes, objects)
        while daemon.is_on("deleting"):
            time.sleep(0.01)
        with daemon as inodes:
            inodes.pop(vid, None)
    except DeadError:
        raise Exit(0, *refused(options), f"Failed to open VDI {name}: I/O error") from None
    except Exit as error:
        raise Exit(0, *error.complaints) from None


def vdi_setattr(daemon, options, name, key, value=None):
    with daemon as inodes:
        try:
            attributes = daemon.attributes.setdefault((find(inodes, name), name), {})
        except Exit:
            raise Exit(5, "VDI not found") from None
        if "-d" in options:
            if attributes.pop(key, None) is None:
                raise Exit(5, f"Attribute '{key}' not found")
        elif "-x" in options and key in attributes:
            raise Exit(3, f"The attribute '{key}' already exists")
        else:
            attributes[key] = sys.stdin.read() if value is None else value


def vdi_getattr(daemon, options, name, key):
    inodes = daemon.snapshot_of_state()
    try:
        value = daemon.attributes.get((find(inodes, name), name), {}).get(key)
    except Exit:
        raise Exit(5, "VDI not found") from None
    if value is None:
        raise Exit(5, f"Attribute '{key}' not found")
    sys.stdout.write(value)


def pieces(inode, what, offset="0", length=None):
    """Object number, offset in it and length of each piece of a range, which is clipped to the vdi."""
    start = size_of(offset)
    if start > inode["size"]:
        raise Exit(1, f"{what} offset is beyond the end of the VDI")
    end = inode["size"] if length is None else min(start + size_of(length), inode["size"])
    while start < end:
        index, inside = divmod(start, 1 << inode["shift"])
        count = min((1 << inode["shift"]) - inside, end - start)
        yield index, inside, count
        start += count


def vdi_read(daemon, options, name, *range_):
    inodes = daemon.snapshot_of_state()
    inode = inodes[find(inodes, name, options.get("-s"))]
    for index, inside, count in pieces(inode, "Read", *range_):
        data = bytes(count)
        if index in inode["objects"]:
            try:
                daemon.contact()
                with open(daemon.object(inode["objects"][index], index), "rb") as file:
                    data = os.pread(file.fileno(), count, inside)
            except (FileNotFoundError, DeadError):
                raise Exit(1, "Failed to read VDI") from None
        view = memoryview(data)
        while view:
            view = view[os.write(1, view) :]


def vdi_write(daemon, options, name, *range_):
    inodes = daemon.snapshot_of_state()
    vid = find(inodes, name)
    inode = inodes[vid]
    for index, inside, count in pieces(inode, "Write", *range_):
        data = bytearray(count)
        filled = 0
        while filled < count and (got := os.readv(0, [memoryview(data)[filled:]])):
            filled += got
        try:
            write_object(daemon, inode, vid, index, inside, data)
        except (FileNotFoundError, DeadError):
            raise Exit(1, "Failed to write VDI") from None
        if filled < count:
            return


def write_object(daemon, inode, vid, index, inside, data):
    daemon.contact()
    path = daemon.object(vid, index)
    owner = inode["objects"].get(index)
    if owner == vid:
        with open(path, "rb+") as file:
            os.pwrite(file.fileno(), data, inside)
        return
    if daemon.is_on("full"):
        raise Exit(1, f"fail {vid:x}, Server has no space for new objects", "Failed to write VDI")
    whole = b""
    if owner is not None:
        with open(daemon.object(owner, index), "rb") as file:
            whole = file.read()
    # Creating writes the whole object, whatever another client made of it meanwhile.
    fresh = f"{path}.{os.getpid()}"
    with open(fresh, "wb") as file:
        file.write(whole)
        file.truncate(1 << inode["shift"])
        os.pwrite(file.fileno(), data, inside)
    os.rename(fresh, path)
    inode["objects"][index] = vid
    with daemon as inodes:
        if vid not in inodes:
            os.unlink(path)
            raise FileNotFoundError
        inodes[vid]["objects"][index] = vid


VERBS = {
    "create": (vdi_create, 1, 2),
    "resize": (vdi_resize, 2, 2),
    "list": (vdi_list, 0, 1),
    "snapshot": (vdi_snapshot, 1, 1),
    "clone": (vdi_clone, 2, 2),
    "delete": (vdi_delete, 1, 1),
    "setattr": (vdi_setattr, 2, 3),
    "getattr": (vdi_getattr, 2, 2),
    "read": (vdi_read, 1, 3),
    "write": (vdi_write, 1, 3),
}
#: What it ends with where no daemon is, and what it says beside that it cannot connect.
DEAD = {
    "list": (2,),
    "getattr": (5, "Failed to find attribute oid: I/O error"),
    "setattr": (1, "Failed to set attribute: I/O error"),
    "create": (1, "Fail to execute request: SD_OP_CLUSTER_INFO"),
}


def refused(options):
    return (f"failed to connect to {options.get('-a', '127.0.0.1')}:{options.get('-p', '7000')}: Connection refused",)


def run(argv, daemon, address, port):
    """One command; raises Exit."""
    if len(argv) < 2 or argv[0] != "vdi" or argv[1] not in VERBS:
        raise Exit(64, "usage: dog vdi <command> [options]")
    verb, words, options, rest = argv[1], [], {}, iter(argv[2:])
    for word in rest:
        if word in FLAGS:
            options[word] = ""
        elif word in VALUES:
            options[word] = next(rest, None)
        elif word.startswith("-") and len(word) > 1:
            raise Exit(64, f"invalid option -- '{word[1:]}'")
        else:
            words.append(word)
    function, fewest, most = VERBS[verb]
    if not fewest <= len(words) <= most or None in options.values():
        raise Exit(64, f"usage: dog vdi {verb}")
    if verb == "clone" and "-s" not in options:
        raise Exit(64, "Only snapshot VDIs can be cloned")
    names = 2 if verb == "clone" else 1
    words[:names] = map(cut, words[:names])
    if "-s" in options:
        options["-s"] = cut(options["-s"])
    wanted = options.get("-p", "7000")
    if not wanted.isdigit() or not 0 < int(wanted) < 65536:
        raise Exit(64, f"Invalid port number '{wanted}'")
    if options.get("-a", "127.0.0.1") != address:
        raise Exit(1, f"Failed to get address info: {options.get('-a')}")
    try:
        if int(wanted) != port:
            raise DeadError
        function(daemon, options, *words)
        lost = daemon.path(f"lose-{verb}")
        if os.path.exists(lost):
            os.unlink(lost)
            raise DeadError
    except DeadError:
        dead = {**DEAD, "create": (2,)} if verb == "create" and len(words) == 1 else DEAD
        code, *more = dead.get(verb, (1, f"Failed to open VDI {words[:1]}: I/O error"))
        raise Exit(code, *refused(options), *more) from None


def main(directory, address="127.0.0.1", port=7000, shift=22):
    """The program."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")
    argv = [os.fsencode(word).decode("utf-8", "surrogateescape") for word in sys.argv[1:]]
    daemon = Daemon(directory, shift)
    with open(daemon.path("journal"), "ab", buffering=0) as journal:
        journal.write("\0".join(argv).encode("utf-8", "surrogateescape") + b"\n")
    code = 0
    try:
        run(argv, daemon, address, port)
        sys.stdout.flush()
    except Exit as error:
        sys.stdout.flush()
        sys.stderr.write("".join(f"{line}\n" for line in error.complaints))
        code = error.code
    except BrokenPipeError:
        code = 2
    sys.stderr.flush()
    os._exit(code)


# -- For the tests --------------------------------------------------------------------------------------------------

#: A running cluster to test against instead of the stand-in, as address:port.
REAL = os.environ.get("STORELIB_TEST_SHEEPDOG", "")


def stand_in_only(test):
    """The test needs switches or settings that only the stand-in has; with a real cluster there is no such test."""
    return None if REAL else test


class Sheepdog:
    """A cluster, the command that leads to it, and a look into it that is not the driver's."""

    def __init__(self, directory, address="127.0.0.1", port=7000, shift=22, name="dog"):
        import shutil
        from pathlib import Path

        self.directory = Path(directory)
        self.address, self.port = address, port
        if REAL:
            self.address, _, real_port = REAL.rpartition(":")
            self.address, self.port = self.address.strip("[]"), int(real_port)
            self.command = shutil.which("dog") or "dog is not on PATH"
            self._before = self.names()
            return
        (self.directory / "objects").mkdir(parents=True)
        binaries = self.directory / "bin"
        binaries.mkdir()
        program = binaries / name
        # Not that of the environment, which looks for its packages first; none are needed.
        python = getattr(sys, "_base_executable", sys.executable)
        program.write_text(
            f"#!{python} -IS\nimport sys\nsys.path.append({os.path.dirname(os.path.abspath(__file__))!r})\n"
            f"import dog\ndog.main({str(self.directory)!r}, {address!r}, {port!r}, {shift!r})\n"
        )
        program.chmod(0o755)
        self.command = str(program)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        """A real cluster is left as it was; the directory of the stand-in is the caller's."""
        for name, tag, snapshot in set(self.names()) - set(self._before) if REAL else ():
            self.run("delete", *(("-s", tag) if snapshot else ()), name)

    @property
    def options(self):
        """What a store is configured with."""
        return {
            "sheepdog_store_command": self.command,
            "sheepdog_store_address": self.address,
            "sheepdog_store_port": self.port,
        }

    def run(self, verb, *arguments, data=b""):
        """``dog vdi verb``: exit code, output and complaints."""
        import subprocess

        where = ("-a", self.address, "-p", str(self.port))
        done = subprocess.run(
            [self.command, "vdi", verb, *where, *arguments], input=data, capture_output=True, timeout=60
        )
        return done.returncode, done.stdout, done.stderr.decode()

    def names(self):
        """Names and tags of all vdis and snapshots, as (name, tag, is a snapshot)."""
        found = []
        for line in filter(None, os.fsdecode(self.run("list", "-r")[1]).split("\n")):
            name, _, rest = line[2:].replace("\\ ", "\0").partition(" ")
            fields = rest.split(" ", 7)
            tag = fields[7].rpartition(" ")[0]
            found.append((name.replace("\0", " ").replace("\\\\", "\\"), tag, line[0] == "s"))
        return found

    # -- Switches of the stand-in ---------------------------------------------------------------------------------

    def switch(self, name, on=True):
        """Turn a switch; see the top of this file."""
        path = self.directory / name
        path.touch() if on else path.unlink(missing_ok=True)

    def calls(self):
        """The arguments of every command so far."""
        journal = self.directory / "journal"
        lines = journal.read_bytes().decode().splitlines() if journal.exists() else []
        return [line.split("\0") for line in lines]

    def forget_calls(self):
        """Begin the journal anew."""
        (self.directory / "journal").unlink(missing_ok=True)
