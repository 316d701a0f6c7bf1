# SPDX-License-Identifier: Apache-2.0
"""``storelib image``: a thin client of the image API v2, storelib's or any other; it needs nothing of ``storelib.api``.

connection says where the API is, client speaks to it, data moves bytes; the commands are in images and sharing.
"""

from storelib.cli.image.command import image
from storelib.cli.image.images import create, delete, list_images, save, set_image, show, unset, upload
from storelib.cli.image.sharing import location, member, stores, tag

__all__ = ["image"]

for _each in (create, list_images, show, set_image, unset, upload, save, delete, member, tag, location, stores):
    image.add_command(_each)
