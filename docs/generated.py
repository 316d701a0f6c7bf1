# SPDX-License-Identifier: Apache-2.0
"""Directives for tables that are made of the code, so that they cannot say anything else than it does."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

import storelib.config
from storelib.api import config, glance_options, openapi, v1, v2
from storelib.api.db import open_repository
from storelib.api.service import Service
from storelib.cli.main import cli
from storelib.registry import Registry

_CONFIGURATION = """
[storelib]
stores = any:memory
[database]
connection = sqlite:///{directory}/images.sqlite
"""


class Table(Directive):
    """A list-table of ``rows``, the first of which is the heading."""

    widths = ""

    def rows(self) -> Iterable[Sequence[str]]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        lines = [".. list-table::", "   :header-rows: 1", f"   :widths: {self.widths}", ""]
        for row in self.rows():
            for number, cell in enumerate(row):
                lines.append(f"   {'* -' if number == 0 else '  -'} {cell}")
        found = nodes.Element()
        self.state.nested_parse(StringList(lines, source=__file__), self.content_offset, found)
        return found.children


class ApiOperations(Table):
    """``.. api-operations::``: every operation of the image API."""

    widths = "10 40 35 15"

    def rows(self) -> Iterator[Sequence[str]]:
        yield "Method", "Path", "What it does", "Statuses"
        for path, methods in operations().items():
            for method, operation in methods.items():
                special = [code for code in operation["responses"] if int(code) not in openapi.EVERYWHERE]
                yield method.upper(), f"``{path}``", operation["summary"], ", ".join(special)


class GlanceOptions(Table):
    """``.. glance-options::``: what became of the options of Glance."""

    widths = "50 50"

    def rows(self) -> Iterator[Sequence[str]]:
        yield "Options of Glance", "Here"
        yield from glance_options.table()


class CommandOptions(Table):
    """``.. command-options::``: every command with its arguments, and every option that it does not share with all."""

    widths = "34 30 36"

    def rows(self) -> Iterator[Sequence[str]]:
        yield "Command", "Option", "What it does"
        for context, shared in _contexts(click.Context(cli, info_name="storelib"), frozenset()):
            words = " ".join([context.command_path, *context.command.collect_usage_pieces(context)])
            name = f"``{words.replace(' [OPTIONS]', '')}``"
            own = [each for each in context.command.params if isinstance(each, click.Option)]
            records = [each.get_help_record(context) for each in own if each.opts[-1] not in shared]
            for option, text in filter(None, records):
                yield name, f"``{option}``", _plain(text)
                name = ""
            if name and not isinstance(context.command, click.Group):
                yield name, "", ""


def _contexts(context: click.Context, shared: frozenset[str]) -> Iterator[tuple[click.Context, frozenset[str]]]:
    """A command and all below it, in the order of their help, each with the options of the groups that it is in."""
    yield context, shared
    if isinstance(context.command, click.Group):
        shared |= {each.opts[-1] for each in context.command.params}
        for name in context.command.list_commands(context):
            found = context.command.get_command(context, name)
            if found is not None and not found.hidden:
                yield from _contexts(click.Context(found, info_name=name, parent=context), shared)


def _plain(text: str) -> str:
    """A text in which nothing is markup."""
    return re.sub(r"([\\*`|_-])", r"\\\1", text)


def operations() -> dict[str, dict[str, openapi.Document]]:
    """The paths of the API's description."""
    with tempfile.TemporaryDirectory() as name:
        file = Path(name, "storelib.ini")
        file.write_text(_CONFIGURATION.format(directory=name))
        conf = storelib.config.load_file(file)
        config.register_opts(conf)
        repository = open_repository(conf)
        try:
            service = Service(conf, repository, Registry.from_conf(conf))
            app = openapi.Routes()
            v2.add_routes(app, service)
            v1.add_routes(app, service)
            return dict(openapi.document(app.routes, {}, "noauth")["paths"])
        finally:
            repository.close()


def setup(app):
    # Of the database that is made for the tables.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    app.add_directive("api-operations", ApiOperations)
    app.add_directive("command-options", CommandOptions)
    app.add_directive("glance-options", GlanceOptions)
    return {"parallel_read_safe": True}
