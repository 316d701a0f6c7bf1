# SPDX-License-Identifier: Apache-2.0
"""What Ironic does with images: its image service, and temporary URLs of Swift for nodes that have no token.

Runs with Ironic's packages: ``python ironic_images.py CONFIGURATION``.
"""

from __future__ import annotations

import sys

from answering import serve
from ironic.common import context, image_service
from ironic.conf import CONF

CONF([], project="ironic", default_config_files=[sys.argv[1]])


def service(image_id):
    return image_service.get_image_service(f"glance://{image_id}", context=context.RequestContext(auth_token=None))


def show(image_id):
    return service(image_id).show(image_id)


def download(image_id, path, algorithm, checksum):
    """Into a file, verified on the way; returns what was verified."""
    images = service(image_id)
    with open(path, "wb") as data:
        images.download(image_id, data, checksum=checksum, checksum_algo=algorithm)
    return images.transfer_verified_checksum


def temporary_url(image_id):
    images = service(image_id)
    return images.swift_temp_url(images.show(image_id))


serve({each.__name__: each for each in (show, download, temporary_url)})
