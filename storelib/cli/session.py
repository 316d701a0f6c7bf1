# SPDX-License-Identifier: Apache-2.0
"""What all commands share: --config, --format and --verbose, the registry, and how a command is declared."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from storelib.cli.output import Output, warn

if TYPE_CHECKING:
    from storelib.driver import Store
    from storelib.exceptions import StoreError
    from storelib.registry import Registry

T = TypeVar("T")

FORMATS = ("auto", "plain", "json")


class Session:
    """One run of the command: where its configuration is and how it speaks."""

    def __init__(self) -> None:
        self.config: str | None = os.environ.get("STORELIB_CONFIG") or None
        self.format = "auto"
        self.verbose = False
        self._registry: Registry | None = None

    @property
    def output(self) -> Output:
        """Writes results in the chosen format."""
        return Output(self.format)

    @property
    def registry(self) -> Registry:
        """The configured stores, made when first asked for."""
        if self._registry is None:
            from storelib.registry import Registry

            self._registry = Registry.from_file(self.config or self._found_config())
        return self._registry

    def stores(self, names: Iterable[str]) -> list[Store[Any]]:
        """The stores with these names, or all of them if none is named."""
        return [self.registry[name] for name in names] or list(self.registry)

    def _found_config(self) -> Path:
        places = search_path()
        for place in places:
            if place.is_file():
                return place
        raise click.UsageError(
            f"no configuration file: looked for {', '.join(map(str, places))}; "
            "name one with --config or STORELIB_CONFIG, or begin with: storelib config sample -o storelib.ini"
        )


def search_path() -> list[Path]:
    """Where a configuration file is looked for, first one first."""
    places = [Path("storelib.ini"), Path("/etc/storelib/storelib.ini")]
    # A user whom the system does not know, as in containers, may have no home.
    with contextlib.suppress(RuntimeError):
        home = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        places.insert(1, home / "storelib" / "storelib.ini")
    return places


def shared_options() -> list[click.Option]:
    """The options that may stand before the command's name as well as after it."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        # Given after the command's name it goes before what was given in front of it.
        if value is not None and parameter.name is not None:
            setattr(context.ensure_object(Session), parameter.name, value)

    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=keep, default=None, **attributes)

    return [
        option("--config", metavar="FILE", type=click.Path(), help="Configuration file [env: STORELIB_CONFIG]."),
        option("--format", type=click.Choice(FORMATS), help="How results are written; json for programs."),
        option("--verbose", "-v", is_flag=True, flag_value=True, help="Log what is done."),
    ]


class Command(click.Command):
    """A command that takes the shared options too."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += shared_options()

    def invoke(self, context: click.Context) -> Any:
        """Run it, more talkative with --verbose."""
        if context.ensure_object(Session).verbose:
            # Not the root logger: client libraries may log credentials.
            logging.getLogger("storelib").setLevel(logging.DEBUG)
        return super().invoke(context)


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Declare a function as the command ``name``; its first argument is the Session."""

    def declare(function: Callable[..., Any]) -> Command:
        declared: Command = click.command(name, cls=Command)(click.pass_obj(function))
        return declared

    return declare


@contextlib.contextmanager
def about(store: str = "", place: Iterable[str] = (), uri: str = "") -> Iterator[None]:
    """Around work on one store or image: an error that does not say which, or none of its places, is told it."""
    from storelib.exceptions import StoreError
    from storelib.uris import redact

    try:
        yield
    except StoreError as error:
        text, uri, places = str(error), redact(uri), list(place)
        what = [f"store {store}"] if store and f"store {store}" not in text else []
        if places and not any(each in text for each in places):
            what += places
        if uri and uri not in text:
            what.append(uri)
        if what:
            error.args = (f"{', '.join(what)}: {text}", *error.args[1:])
        raise


def from_each(
    stores: Iterable[Store[Any]], look: Callable[[Store[Any]], Iterable[T]], failures: list[StoreError]
) -> Iterator[T]:
    """What ``look`` finds in each store; one that fails keeps none of the others, and is added to ``failures``."""
    from storelib.exceptions import StoreError

    for store in stores:
        try:
            with about(store.name, places_of(store)):
                yield from look(store)
        except StoreError as error:
            failures.append(error)


def fail_with(failures: list[StoreError]) -> None:
    """Report all failures; the first one decides the exit code."""
    for error in failures[1:]:
        warn(str(error))
    if failures:
        raise failures[0]


def places_of(store: Store[Any]) -> list[str]:
    """Where a store keeps its images, in few words: directories, a prefix, or else the bucket, pool and the like."""
    # What stands before may be an account, whose name is not told.
    names = [area.prefix.rstrip("/") or "/".join(map(str, filter(None, area.container[-2:]))) for area in store.areas()]
    return list(dict.fromkeys(names))


def complete_store(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of stores for the shell; none if the configuration is missing or wrong."""
    from storelib.exceptions import StoreError

    session = context.ensure_object(Session)
    try:
        return [store.name for store in session.registry if store.name.startswith(incomplete)]
    except (StoreError, click.ClickException):
        return []
