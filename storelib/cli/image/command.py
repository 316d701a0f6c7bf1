# SPDX-License-Identifier: Apache-2.0
"""The group ``storelib image``, and how one of its commands is declared: with the options that name the API."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from storelib.cli.parameters import Seconds
from storelib.cli.session import Command, Session

if TYPE_CHECKING:
    from storelib.cli.image.client import Api

#: What stands before the names of the options that name the API, in ``Context.meta`` of click.
META = "storelib.image."


def connection_options() -> list[click.Option]:
    """They may stand behind ``image`` as well as behind the command."""

    def keep(context: click.Context, parameter: click.Parameter, value: Any) -> None:
        if value is not None:
            context.meta[f"{META}{parameter.name}"] = value

    def option(*names: str, **attributes: Any) -> click.Option:
        return click.Option(names, expose_value=False, callback=keep, default=None, **attributes)

    return [
        option("--url", metavar="URL", help="URL of the image API [env: OS_IMAGE_URL, OS_IMAGE_ENDPOINT_OVERRIDE]."),
        option("--token", metavar="TOKEN", help="Token of the caller [env: OS_TOKEN]."),
        option("--cacert", metavar="FILE", type=click.Path(), help="Authorities to trust for TLS [env: OS_CACERT]."),
        option("--timeout", metavar="SECONDS", type=Seconds(0.1), help="How long to wait for a response."),
    ]


@click.group("image")
def image() -> None:
    """Work with the images of a running image API.

    Where it is and who asks is told by --url and --token, or by the variables that openstackclient reads: OS_IMAGE_URL,
    OS_IMAGE_ENDPOINT_OVERRIDE, OS_TOKEN, or OS_AUTH_URL with OS_USERNAME, OS_PASSWORD, OS_PROJECT_NAME and so on. With
    none of these it is what 'storelib serve' serves on this machine. An IMAGE is an id or a name.
    """


image.params += connection_options()


class ImageCommand(Command):
    """A command that talks to an image API."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += connection_options()


def connect(context: click.Context) -> Api:
    """The API that the options or the environment name."""
    from storelib.cli.image.client import Api
    from storelib.cli.image.connection import Options, find

    given = {name: context.meta[META + name] for name in Options._fields if META + name in context.meta}
    options = Options(**given)
    return Api(find(options, os.environ), options.timeout)


def command(name: str) -> Callable[[Callable[..., Any]], ImageCommand]:
    """Declare a function as the command ``name``; its first arguments are the Session and the Api."""

    def declare(function: Callable[..., Any]) -> ImageCommand:
        @functools.wraps(function)
        def call(context: click.Context, /, *arguments: Any, **named: Any) -> Any:
            return function(context.ensure_object(Session), connect(context), *arguments, **named)

        declared: ImageCommand = click.command(name, cls=ImageCommand)(click.pass_context(call))
        return declared

    return declare
