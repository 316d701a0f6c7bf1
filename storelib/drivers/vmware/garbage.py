# SPDX-License-Identifier: Apache-2.0
"""What failed adds left behind: files beside the images to which nothing is written any more."""

from __future__ import annotations

from collections.abc import Iterator

from storelib.driver import Garbage
from storelib.drivers.vmware.errors import is_fault
from storelib.drivers.vmware.options import Target
from storelib.drivers.vmware.publication import UPLOADS, split_temporary
from storelib.drivers.vmware.vcenter import Datastores, File


def find(datastores: Datastores, older_than: float, prefix: str | None) -> Iterator[Garbage]:
    """Files of images whose ids begin with ``prefix`` that were last written to ``older_than`` seconds ago, or before.

    By the clock of vCenter, as the times of files are.
    """
    now = datastores.session.now()

    def look(target: Target) -> Iterator[Garbage]:
        for file in datastores.files(target, (*datastores.directory, UPLOADS)):
            named = split_temporary(file.name)
            # To a file without a time something may be written just now.
            modified = file.modified or now
            if named is None or file.is_folder or modified > now - older_than or file.name in datastores.live:
                continue
            image_id, whole = named
            # Of a long id that was cut, more than its beginning is not known.
            if image_id.startswith(prefix or ""):
                name = f"{file.name} in {target}"
                yield Garbage(name, image_id if whole else None, file.size, modified, (target, file))

    return datastores.everywhere(look)


def discard(datastores: Datastores, item: Garbage) -> bool:
    """Remove the file; False if something was written to it since."""
    target: Target
    file: File
    target, file = item.handle
    names = (*datastores.directory, UPLOADS, file.name)
    if file.name in datastores.live or datastores.find(target, names) != file:
        return False
    try:
        datastores.delete(target, names)
    except Exception as error:
        if is_fault(error, "FileNotFound"):
            return False
        raise
    return True
