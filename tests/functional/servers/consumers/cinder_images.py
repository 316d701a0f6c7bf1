# SPDX-License-Identifier: Apache-2.0
"""What Cinder does with images: its image module, the transfer of volumes, and its driver for Ceph.

Runs with Cinder's packages: ``python cinder_images.py CONFIGURATION``.
"""

from __future__ import annotations

import sys
import types
import uuid

from answering import serve
from cinder import objects
from cinder.common import config  # noqa: F401 - registers the options
from oslo_config import cfg

cfg.CONF([], project="cinder", default_config_files=[sys.argv[1]])
objects.register_all()

# This one first: it imports glance, which cannot be imported before it.
import cinder.image.image_utils as image_utils  # noqa: E402
from cinder import context  # noqa: E402
from cinder.image import glance  # noqa: E402
from cinder.volume import configuration, driver  # noqa: E402
from cinder.volume.drivers import rbd  # noqa: E402

SERVICE = glance.GlanceImageService()


def caller(who):
    return context.RequestContext(
        user_id=who["user"], project_id=who["project"], auth_token=who["token"], is_admin=False, service_catalog=[]
    )


def upload_volume(who, fields, path):
    """As for a request to make an image of a volume."""
    image = SERVICE.create(caller(who), fields)
    image_utils.upload_volume(caller(who), SERVICE, image, path, run_as_root=False)
    return image["id"]


def show(who, image_id):
    return SERVICE.show(caller(who), image_id)


def update(who, image_id, fields, purge):
    return SERVICE.update(caller(who), image_id, fields, purge_props=purge)


def download(who, image_id, path):
    image_utils.fetch(caller(who), SERVICE, image_id, path, None, None)


def locations(who, image_id):
    return SERVICE.get_location(caller(who), image_id)


def add_location(who, fields, url):
    image = SERVICE.create(caller(who), fields)
    SERVICE.add_location(caller(who), image["id"], url, {})
    return image["id"]


def volume_of_image(who, image_id):
    """As for a new volume of an image: a clone in Ceph, of the place that the image service tells to services only."""
    ceph = rbd.RBDDriver(configuration=configuration.Configuration(driver.volume_opts, config_group="rbd"))
    ceph.do_setup(caller(who))
    volume = types.SimpleNamespace(id=str(uuid.uuid4()), name=f"volume-{uuid.uuid4()}", size=1, volume_type=None)
    image = SERVICE.show(caller(who), image_id)
    _, cloned = ceph.clone_image(caller(who), volume, locations(who, image_id), image, SERVICE)
    return volume.name if cloned else None


serve(
    {each.__name__: each for each in (upload_volume, show, update, download, locations, add_location, volume_of_image)}
)
