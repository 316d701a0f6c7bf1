# SPDX-License-Identifier: Apache-2.0
"""The ``[storelib]`` options, one group per store, and the look-up that layers them.

A store's option is looked for in the store's own group, then in ``[storelib]``, then it is the option's default. That
happens whenever it is read; no default is ever rewritten, so several ConfigOpts and registries live side by side.
Mistakes become BadStoreConfiguration with file, line, group, option, value and what is allowed. No store is made here.
"""

from __future__ import annotations

import copy
import difflib
import glob
import itertools
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from oslo_config import cfg, iniparser, types

from storelib.driver import STORE_OPTIONS, Store
from storelib.exceptions import BadStoreConfiguration
from storelib.option_types import LocalPath
from storelib.plugins import driver_classes, driver_names
from storelib.transfer.contract import MiB
from storelib.uris import redact

LOG = logging.getLogger(__name__)

#: The group of what concerns all stores.
SHARED = "storelib"
#: A reserved file store keeps its images in a directory of its own in here, unless its group says otherwise.
RESERVED_DATADIR = "/var/lib/storelib"

STORES = cfg.ListOpt(
    "stores",
    default=["file", "http"],
    help="The stores, each as id:driver; a bare name is both. The options of store 'fast' are in group [fast]; "
    "those it does not set there are taken from [storelib].",
)
DEFAULT_STORE = cfg.StrOpt(
    "default_store",
    help="Id of the store that is used when none is named; the first of 'stores' if not set.",
)

TRANSFER_MEMORY = cfg.IntOpt(
    "transfer_memory",
    default=0,
    min=0,
    help="MiB that all transfers of the process may hold together; those that find no room wait. 0: a quarter of the "
    "memory that the process may use, which is the machine's or what its cgroup leaves.",
)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
#: Groups with a meaning of their own, and options of oslo.config that a group of the same name would hide.
NOT_IDS = (
    *(SHARED, "default", "config_file", "config_dir", "config_source"),
    *("api", "database", "healthcheck", "keystone_authtoken", "oslo_middleware", "oslo_policy"),
    *("key_manager", "barbican", "barbican_service_user"),
)
# Ids the calling program keeps for itself, as in glance_store.
_RESERVED_PREFIX = "os_glance_"
_OLD_GROUPS = ("glance_store", "backend_defaults")


class StoreEntry(NamedTuple):
    """One store as it is listed: its id and the name of its driver."""

    name: str
    driver: str
    reserved: bool = False


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register ``[storelib]`` with the options of every installed driver; may be repeated."""
    conf.register_group(cfg.OptGroup(SHARED, help="All stores, and what they have in common."))
    _register(conf, SHARED, (STORES, DEFAULT_STORE, TRANSFER_MEMORY, *STORE_OPTIONS))
    for driver in driver_classes().values():
        _register(conf, SHARED, driver.options)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """Every option there is, for oslo-config-generator."""
    group = cfg.OptGroup(
        SHARED,
        help="All stores, and what they have in common. An option of a driver or a store that is set here is the "
        "default for all stores; a store's own group, named like its id, goes before.",
    )
    return [(group, [copy.deepcopy(option) for option in _all_options()])]


def load_file(path: str | os.PathLike[str]) -> cfg.ConfigOpts:
    """A ConfigOpts that knows ``[storelib]`` and has read ``path``; raises BadStoreConfiguration."""
    conf = cfg.ConfigOpts()
    register_opts(conf)
    read_file(conf, path)
    return conf


def read_file(conf: cfg.ConfigOpts, path: str | os.PathLike[str]) -> None:
    """Have a ConfigOpts read ``path`` and nothing else; raises BadStoreConfiguration."""
    name = os.fspath(path)
    read_settings(name)  # its messages have line numbers and do not quote the line, which may hold a secret
    try:
        conf(args=[], project="storelib", default_config_files=[name], default_config_dirs=[])
    except cfg.Error as error:
        raise BadStoreConfiguration(f"{name}: {error}") from error


class OptionReader:
    """One ConfigOpts and the files behind it: reads options, and knows where their values come from."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.conf = conf
        # oslo.config does not tell lines, nor names it does not know, so the files are read once more.
        self.settings = [setting for name in _files(conf) for setting in _read_again(name)]

    def value(self, group: str, option: cfg.Opt) -> Any:
        """What oslo.config reads for an option; raises BadStoreConfiguration."""
        try:
            found = sound(option, self.conf[group][option.dest])
        # An option that refers to itself is one too deep.
        except (ValueError, cfg.Error, RecursionError) as error:
            if "$" in (source := self._source(group, option)).text:
                why = "; a '$' begins the name of another option, one that is meant as it is is written '$$'"
            elif option.secret:
                why = ""
            else:
                # What oslo.config says before that is in where() already.
                why = f" ({redact(str(error).rpartition('is not valid: ')[2])})"
            where = source.shown(group, option)
            raise BadStoreConfiguration(f"{where} is not valid: expected {allowed(option)}{why}") from None
        if not isinstance(option.type, LocalPath):
            return found
        if option.multi and not all(path.startswith("/") for path in found or ()):
            given = [each for each in self.settings if _sets(each, group, option)]
            if [each.value for each in given] == found:
                # Several files may have given them.
                return [absolute(each.value, each.directory) for each in given]
        return absolute(found, lambda: self.directory(group, option))

    def is_set(self, group: str, option: cfg.Opt) -> bool:
        """Whether a file, the environment or the program gives the option a value in this very group."""
        try:
            return self._location(group, option) is not cfg.Locations.opt_default
        except (ValueError, cfg.Error, RecursionError):
            return True

    def where(self, group: str, option: cfg.Opt) -> str:
        """Group, option, value (unless secret) and where that comes from, for people to read."""
        return self._source(group, option).shown(group, option)

    def warn_of_references(self, group: str, option: cfg.Opt) -> None:
        """A password may have a ``$`` in it, and be changed without a word when what follows is an option's name."""
        if not option.secret:
            return
        text = self._source(group, option).text.replace("$$", "")
        if "$" in text and text != self.conf[group][option.dest]:
            LOG.warning(
                "%s: a '$' in it is replaced by the option it names; one that is meant as it is is written '$$'",
                self.where(group, option),
            )

    def directory(self, group: str, option: cfg.Opt) -> str:
        """The directory of the file that sets the option; the current one where no file does."""
        setting = self._source(group, option).setting
        return setting.directory() if setting else os.getcwd()

    def _source(self, group: str, option: cfg.Opt) -> _Source:
        if self._set_by_program(group, option):
            return _Source(option.dest, str(self.conf[group][option.dest]), "set by the program")
        variable = f"OS_{group}__{option.dest}".upper()  # oslo.config's, which goes before the files
        if variable in os.environ:
            return _Source(option.dest, os.environ[variable], f"environment: {variable}")
        for setting in reversed(self.settings):
            if _sets(setting, group, option):
                return _Source(setting.key, setting.value, setting.place, setting)
        return _Source(option.dest, "", None)

    def _location(self, group: str, option: cfg.Opt) -> cfg.Locations:
        found = self.conf.get_location(option.dest, group)
        return cfg.Locations.opt_default if found is None else found.location

    def _set_by_program(self, group: str, option: cfg.Opt) -> bool:
        try:
            return self._location(group, option) in (cfg.Locations.set_override, cfg.Locations.set_default)
        except (ValueError, cfg.Error, RecursionError):
            return False


class _Source(NamedTuple):
    """What gives an option its value: the name used there, the text as it stands there, the place for people."""

    key: str
    text: str
    place: str | None
    setting: Setting | None = None

    def shown(self, group: str, option: cfg.Opt) -> str:
        """Group, option, value (unless secret) and place."""
        if self.place is None:
            return f"[{group}] {option.dest} (not set)"
        return f"[{group}] {self.key} = {_shown(option, self.text)} ({self.place})"


class Configuration(OptionReader):
    """The stores that a configuration lists and the options of each, checked.

    ``reserved`` are stores of the calling program itself, id to driver; they inherit nothing from ``[storelib]``.
    Raises BadStoreConfiguration for ids, drivers and a default store that cannot be.
    """

    def __init__(self, conf: cfg.ConfigOpts, reserved: Mapping[str, str] | None = None) -> None:
        register_opts(conf)
        super().__init__(conf)
        self.entries = self._listed()
        self.entries += [StoreEntry(name, driver, reserved=True) for name, driver in (reserved or {}).items()]
        _check_entries(self.entries, self.where(SHARED, STORES))
        if not self.entries:
            raise BadStoreConfiguration(f"{self.where(SHARED, STORES)}: list at least one store as id:driver")
        self.default = self._default()
        #: Bytes that all transfers may hold together, None where nothing is said.
        self.transfer_memory = self.value(SHARED, TRANSFER_MEMORY) * MiB or None

    def options(self, entry: StoreEntry, driver: type[Store[Any]]) -> StoreOptions:
        """Register the group of one store and check its values; raises BadStoreConfiguration."""
        options = [*STORE_OPTIONS, *driver.options]
        if entry.reserved:
            options = [_reserved_option(option, entry.name) for option in options]
        _register(self.conf, entry.name, options)
        # What users' stores share must not leak into those of the program: their images would get mixed.
        groups = (entry.name,) if entry.reserved else (entry.name, SHARED)
        found = StoreOptions(self, groups, options)
        for option in options:
            getattr(found, option.dest)
            self.warn_of_references(found.group(option), option)
        return found

    def check_names(self, known: Mapping[str, Iterable[str]]) -> None:
        """Find misspelled options and groups, which oslo.config silently ignores.

        ``known`` has the option names of each store. A wrong one in ``[storelib]`` or a store's group raises
        BadStoreConfiguration, since the default that would be used instead may be another user's directory. A group
        that looks like that of a store which is not listed is only logged: the file may serve other programs too. So
        is an option that one file sets twice, of which the last one counts.
        """
        groups = {name.lower(): set(names) for name, names in known.items()}
        if len(driver_classes()) == len(driver_names()):
            # With a driver that does not load, nobody knows all names.
            groups[SHARED] = {*option_names(_all_options()), *self.conf[SHARED]}
        ours = {SHARED, *(entry.name.lower() for entry in self.entries)}
        self._warn_of(setting for setting in self.settings if setting.group.lower() not in ours)
        self._warn_of_repeated(setting for setting in self.settings if setting.group.lower() in ours)
        for setting in self.settings:
            names = groups.get(setting.group.lower())
            if names is not None and setting.key not in names:
                raise BadStoreConfiguration(f"{setting}: there is no such option{did_you_mean(setting.key, names)}")

    def _listed(self) -> list[StoreEntry]:
        where = self.where(SHARED, STORES)
        entries: list[StoreEntry] = []
        for item in self.value(SHARED, STORES):
            name, colon, driver = (part.strip() for part in item.partition(":"))
            if name.lower().startswith(_RESERVED_PREFIX):
                raise BadStoreConfiguration(f"{where}: ids that start with {_RESERVED_PREFIX} are for internal stores")
            entries.append(StoreEntry(name, driver if colon else name))
        return entries

    def _default(self) -> str | None:
        known = [entry.name for entry in self.entries if not entry.reserved]
        name = self.value(SHARED, DEFAULT_STORE)
        if name and name not in known:
            where = self.where(SHARED, DEFAULT_STORE)
            raise BadStoreConfiguration(f"{where}: 'stores' does not list it{did_you_mean(name, known)}")
        return name or next(iter(known), None)

    def _warn_of(self, strangers: Iterable[Setting]) -> None:
        drivers = {name for driver in driver_classes().values() for name in option_names(driver.options)}
        # Names such as 'weight' other programs have, too: they count where the group is nearly called like one of ours.
        general = option_names((STORES, DEFAULT_STORE, TRANSFER_MEMORY, *STORE_OPTIONS))
        stores = [entry.name for entry in self.entries]
        seen = set()
        for setting in strangers:
            group = setting.group
            if group in seen or group.startswith(_RESERVED_PREFIX):
                continue
            near = [] if group.lower() in NOT_IDS else difflib.get_close_matches(group, [*stores, SHARED], n=1)
            if setting.key not in drivers and not (near and setting.key in general):
                continue
            seen.add(group)
            if group in _OLD_GROUPS:
                hint = "; this is glance_store's form, see storelib config migrate"
            elif near == [SHARED]:
                hint = f"; did you mean {SHARED}?"
            else:
                hint = did_you_mean(group, stores)
            LOG.warning(
                "%s: group [%s] has options of a store, but [storelib] stores does not list it%s",
                setting.place,
                group,
                hint,
            )

    def _warn_of_repeated(self, ours: Iterable[Setting]) -> None:
        repeatable = option_names(option for option in _all_options() if option.multi)
        before: dict[tuple[str, str, str], Setting] = {}
        for setting in ours:
            name = setting.file, setting.group.lower(), setting.key
            first = before.setdefault(name, setting)
            if first.value != setting.value and setting.key not in repeatable:
                LOG.warning("%s: line %d sets it, too, and of both the later one counts", setting, first.line)
            before[name] = setting


class StoreOptions:
    """The options of one store as attributes, from the first of its groups that sets them."""

    def __init__(self, configuration: Configuration, groups: Sequence[str], options: Iterable[cfg.Opt]) -> None:
        self._configuration = configuration
        self._groups = groups
        self._options = {option.dest: option for option in options}

    def __getattr__(self, name: str) -> Any:
        option = self.__dict__.get("_options", {}).get(name)
        if option is None:
            raise AttributeError(f"{self!r} has no option {name!r}")
        return self._configuration.value(self.group(option), option)

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __repr__(self) -> str:
        return f"<StoreOptions [{self.__dict__.get('_groups', '?')[0]}]>"

    def names(self) -> set[str]:
        """All names these options have in a file, the deprecated ones included."""
        return option_names(self._options.values())

    def where(self, name: str) -> str:
        """Group, option, value (unless secret) and where that comes from, for error messages."""
        option = self._options[name]
        return self._configuration.where(self.group(option), option)

    def group(self, option: cfg.Opt) -> str:
        """The group that the option is read from."""
        return next((group for group in self._groups if self._configuration.is_set(group, option)), self._groups[0])


class GivenOptions(SimpleNamespace):
    """The options of one store as attributes, as the caller gave them."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"there is no option {name!r}")

    def __repr__(self) -> str:
        # Some values are secret.
        return f"<options {', '.join(vars(self))}>"


def given_options(name: str, driver: str, options: Sequence[cfg.Opt], given: Mapping[str, Any]) -> GivenOptions:
    """The options of a store that has no file: ``given`` as the options' types, else the defaults.

    A value of None means the default. Raises BadStoreConfiguration.
    """
    values = {option.dest: copy.copy(option.default) for option in options}
    known = {key: option for option in options for key in _names(option)}
    for key, value in given.items():
        option = known.get(key)
        if option is None:
            hint = did_you_mean(key, known)
            raise BadStoreConfiguration(f"store {name}: driver {driver} has no option {key}{hint}")
        if value is not None:
            values[option.dest] = convert(name, option, value)
    return GivenOptions(**values)


def convert(store: str, option: cfg.Opt, value: Any) -> Any:
    """``value`` as the option's type; raises BadStoreConfiguration."""
    try:
        if option.multi:
            items = [value] if isinstance(value, (str, os.PathLike)) else value
            found: Any = sound(option, [option.type(item) for item in items])
        else:
            found = sound(option, option.type(value))
        return absolute(found, os.getcwd) if isinstance(option.type, LocalPath) else found
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        reason = "" if option.secret else f" ({redact(str(error))})"
        raise BadStoreConfiguration(
            f"store {store}: {option.dest} = {_shown(option, value)} is not valid: expected {allowed(option)}{reason}"
        ) from None


def sound(option: cfg.Opt, value: Any) -> Any:
    """``value``, but not what is no number or no text; raises ValueError.

    No number is nan, which no comparison with a limit refuses, infinity, or nothing. No text is what can be in
    no URI, no path and no name on a server.
    """
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            text.encode()
            if "\0" in text:
                raise ValueError("it has a null character")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number")
    # To oslo.config, "option =" is None, which only an option without a default may be.
    if value is None and option.default is not None and isinstance(option.type, types.Number):
        raise ValueError("there is no number")
    return value


def absolute(paths: Any, directory: Callable[[], str]) -> Any:
    """One path or several, relative ones in ``directory()``; what is empty, None or of a home stays so."""
    if isinstance(paths, list):
        return [absolute(path, directory) for path in paths]
    # ":7" is a priority without its directory, which the driver refuses.
    return paths if not paths or paths.startswith(("/", "~", ":")) else os.path.join(directory(), paths)


def option_names(options: Iterable[cfg.Opt]) -> set[str]:
    """All names that options have in a file, the deprecated ones included."""
    return {name for option in options for name in _names(option)}


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """The known name that is most like ``name``, or all of them if they are few, as the end of a sentence."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1) if isinstance(name, str) else []
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known are: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def allowed(option: cfg.Opt) -> str:
    """What values an option takes, in words."""
    kind: Any = option.type
    if isinstance(kind, types.List) and (choices := getattr(kind.item_type, "choices", None)):
        return "a list of " + ", ".join(map(str, choices))
    if getattr(kind, "choices", None):
        return "one of " + ", ".join(map(str, kind.choices))
    words = {types.Boolean: "true or false", types.Integer: "a whole number", types.Float: "a number"}
    text = next((words[base] for base in type(kind).__mro__ if base in words), repr(kind))
    for word, limit in (("at least", getattr(kind, "min", None)), ("at most", getattr(kind, "max", None))):
        text += "" if limit is None else f", {word} {limit:g}"
    return text


# -- Options and files ----------------------------------------------------------------------------------------------


class Setting(NamedTuple):
    """One assignment in a configuration file."""

    file: str
    line: int
    group: str
    key: str
    value: str

    @property
    def place(self) -> str:
        """The file and the line, for people to read."""
        return f"{self.file}, line {self.line}"

    def directory(self) -> str:
        """The directory of the file."""
        return os.path.dirname(os.path.abspath(self.file))

    def __str__(self) -> str:
        return f"[{self.group}] {self.key} ({self.place})"


def read_settings(name: str) -> list[Setting]:
    """All assignments in one file, whatever they mean; raises BadStoreConfiguration."""
    parser = _Parser(name)
    try:
        with open(name, encoding="utf-8") as file:
            first = file.readline()
            if first.startswith("\ufeff"):
                raise BadStoreConfiguration(f"{name} begins with a byte order mark: save it as UTF-8 without one")
            parser.parse(itertools.chain([first], file))
    except UnicodeDecodeError:
        raise BadStoreConfiguration(f"{name} is not a configuration file: it is not text in UTF-8") from None
    except OSError as error:
        raise BadStoreConfiguration(f"cannot read configuration file {name}: {error.strerror}") from error
    return parser.found


class _Parser(iniparser.BaseParser):
    """Collects assignments with the lines they start at."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.group = ""
        self.found: list[Setting] = []

    def new_section(self, section: str) -> None:
        self.group = section

    def assignment(self, key: str, value: list[str]) -> None:
        if not self.group:
            raise self.parse_exc("this stands before the first [group]", self.line)
        self.found.append(Setting(self.name, self.line, self.group, key, "\n".join(value)))

    def _split_key_value(self, line: str) -> tuple[str, list[str]]:
        self.line = self.lineno
        return super()._split_key_value(line)

    def parse_exc(self, message: str, lineno: int, line: str = "") -> BadStoreConfiguration:  # type: ignore[override]
        return BadStoreConfiguration(f"{self.name}, line {lineno}: {message}")


def _files(conf: cfg.ConfigOpts) -> Iterator[str]:
    """In the order in which oslo.config reads them, of which the last counts: what the command line names comes after
    what it does not, and in its own order.
    """
    # A ConfigOpts that was never called has none of these.
    files = getattr(conf, "config_file", None) or ()
    directories = conf.config_dirs or getattr(conf, "config_dir", None) or ()
    found = {
        "--config-file": [[os.path.expanduser(name)] for name in files],
        "--config-dir": [sorted(glob.glob(os.path.join(os.path.expanduser(name), "*.conf"))) for name in directories],
    }
    words = [word.partition("=")[0] for word in getattr(conf, "_args", None) or ()]
    for kind in [kind for kind in found if kind not in words]:
        yield from itertools.chain(*found.pop(kind))
    for kind in [word for word in words if word in found]:
        yield from found[kind].pop(0) if found[kind] else ()


def _read_again(name: str) -> list[Setting]:
    """A program may have given up the right to read its files after it has read them."""
    try:
        return read_settings(name)
    except BadStoreConfiguration as error:
        LOG.warning("misspelled options are not noticed: %s", error)
        return []


def _register(conf: cfg.ConfigOpts, group: str, options: Iterable[cfg.Opt]) -> None:
    try:
        conf.register_opts(options, group=group)
    except cfg.DuplicateOptError as error:
        raise BadStoreConfiguration(
            f"[{group}] {error.opt_name} is defined in two ways, by two drivers or programs"
        ) from error


def _all_options() -> list[cfg.Opt]:
    drivers = [option for driver in driver_classes().values() for option in driver.options]
    unique = {option.dest: option for option in (STORES, DEFAULT_STORE, TRANSFER_MEMORY, *STORE_OPTIONS, *drivers)}
    return list(unique.values())


def _reserved_option(option: cfg.Opt, store: str) -> cfg.Opt:
    if option.dest != "filesystem_store_datadir":
        return option
    own = copy.deepcopy(option)
    own.default = f"{RESERVED_DATADIR}/{store}"
    return own


def _shown(option: cfg.Opt, value: object) -> str:
    if option.secret:
        return "***"
    # Behind a '$' may stand what was meant to be a part of a password.
    before, dollar, _ = str(value).encode(errors="backslashreplace").decode().partition("$")
    return redact(before) + (f"{dollar}..." if dollar else "")


def _sets(setting: Setting, group: str, option: cfg.Opt) -> bool:
    return setting.group.lower() == group.lower() and setting.key in _names(option)


def _names(option: cfg.Opt) -> list[str]:
    deprecated = [old.name for old in option.deprecated_opts if old.name and not old.group]
    return [option.dest, option.name, *deprecated]


def _check_entries(entries: Sequence[StoreEntry], where: str) -> None:
    seen: dict[str, str] = {}
    drivers = driver_names()
    for name, driver, _ in entries:
        if not _ID.fullmatch(name):
            raise BadStoreConfiguration(
                f"{where}: {name!r} is not a store id; expected 1 to 64 letters, digits, '_', '.' or '-'"
            )
        if name.lower() in NOT_IDS:
            raise BadStoreConfiguration(f"{where}: a store cannot be called {name}, that name has a meaning already")
        if name.lower() in seen:
            # oslo.config takes [Fast] and [fast] for one group.
            raise BadStoreConfiguration(f"{where}: {seen[name.lower()]} and {name} are the same store id")
        if driver not in drivers:
            hint = did_you_mean(driver, drivers)
            raise BadStoreConfiguration(f"{where}: there is no driver {driver!r} for store {name}{hint}")
        seen[name.lower()] = name
