# SPDX-License-Identifier: Apache-2.0
"""``storelib scrub``: what becomes of the data of deleted images that is kept for a time ([api] delayed_delete)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from storelib.cli.parameters import Age
from storelib.cli.service import image_api, service
from storelib.cli.session import Session, command
from storelib.exceptions import InUseByStore, NotFound

if TYPE_CHECKING:
    from storelib.api.service import Service


@command("scrub")
@click.option(
    "--older-than",
    type=Age(),
    metavar="AGE",
    help="Images that were deleted so long ago; [api] scrub_time if not given.",
)
@click.option("--restore", metavar="IMAGE", help="Give this deleted image back instead, by its id.")
def scrub(session: Session, older_than: float | None, restore: str | None) -> None:
    """Delete the data of images that were deleted, once its time is over, or give an image back.

    Servers do the same by themselves from time to time. May run beside them.
    """
    with image_api("scrub"), service(session) as found:
        from storelib.api import errors
        from storelib.api.service import deletion

        images = found.core.repository.images
        if restore is not None:
            try:
                image = images.restore(restore)
            except errors.ImageNotFound as error:
                raise NotFound(str(error)) from error
            except errors.Conflict as error:
                raise InUseByStore(str(error)) from error
            session.output.one({"id": image.id, "name": image.name, "status": image.status, "owner": image.owner})
            return
        age = deletion.kept_for(found.core) if older_than is None else older_than
        before = _pending(found)
        deletion.scrub(found.core, age)
        left = _pending(found)
        session.output.one({"deleted": before - left, "left": left})


def _pending(found: Service) -> int:
    return sum(1 for _ in found.core.repository.locations.pending())
