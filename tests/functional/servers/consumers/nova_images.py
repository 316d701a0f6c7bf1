# SPDX-License-Identifier: Apache-2.0
"""What Nova does with images: its image module, and its back end for disks that are RBD images.

Runs with Nova's packages: ``python nova_images.py CONFIGURATION``.
"""

from __future__ import annotations

import sys

import nova.conf

nova.conf.CONF([], project="nova", default_config_files=[sys.argv[1]])

from answering import serve  # noqa: E402
from nova import context  # noqa: E402
from nova.image import glance  # noqa: E402
from nova.storage import rbd_utils  # noqa: E402
from nova.virt.libvirt import imagebackend  # noqa: E402

API = glance.API()
MIB = 1024 * 1024


def caller(who):
    """The user whose request Nova works on."""
    endpoint = {"publicURL": who["url"], "internalURL": who["url"], "region": who["region"]}
    return context.RequestContext(
        user_id=who["user"],
        project_id=who["project"],
        auth_token=who["token"],
        is_admin=False,
        service_catalog=[{"type": "image", "name": "image", "endpoints": [endpoint]}],
    )


def create(who, fields, path=None):
    if path is None:
        return API.create(caller(who), fields)
    with open(path, "rb") as data:
        return API.create(caller(who), fields, data)


def show(who, image_id):
    return API.get(caller(who), image_id, include_locations=True, show_deleted=False)


def names(who):
    return [image["name"] for image in API.get_all(caller(who))]


def update(who, image_id, fields, purge):
    return API.update(caller(who), image_id, fields, purge_props=purge)


def download(who, image_id, path):
    API.download(caller(who), image_id, dest_path=path)


def delete(who, image_id):
    API.delete(caller(who), image_id)


def disk_of(name):
    return imagebackend.Rbd(path=f"{nova.conf.CONF.libvirt.images_rbd_pool}/{name}")


def boot(who, image_id, name):
    """The disk of a new server: a clone of the image, which the image service copies into Ceph first if need be."""
    disk = disk_of(name)
    disk.clone(caller(who), image_id)
    return disk.get_disk_size(None)


def write(name, text):
    """What the server does: some bytes at the beginning of its disk."""
    with rbd_utils.RBDVolumeProxy(disk_of(name).driver, name) as volume:
        volume.write(text.encode(), 0)


def snapshot(who, name, image_id, base_image_id):
    """As LibvirtDriver.snapshot does it for a disk in Ceph; the image was made by the API of Nova before."""
    url = disk_of(name).direct_snapshot(caller(who), "taken", "raw", image_id, base_image_id)
    metadata = {"disk_format": "raw", "container_format": "bare", "properties": {"os_type": "linux"}, "location": url}
    API.update(caller(who), image_id, metadata, purge_props=False)
    return url


serve({each.__name__: each for each in (create, show, names, update, download, delete, boot, write, snapshot)})
