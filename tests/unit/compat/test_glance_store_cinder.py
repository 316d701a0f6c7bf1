# SPDX-License-Identifier: Apache-2.0
"""Volumes of Cinder that are images to Glance though storelib did not make them, with a Cinder that only tells."""

from __future__ import annotations

import types

import pytest
from oslo_config import cfg

from storelib.compat.glance_store import exceptions, multi_backend
from storelib.drivers.cinder.service import Volume
from storelib.exceptions import NotFound

VOLUME = "12345678-1234-1234-1234-123456789abc"
#: What Cinder notes, with ``image_upload_use_cinder_backend``, before it gives Glance the location.
OF_CINDER = {"image_owner": "project"}


class Api:
    """Cinder as far as it is asked here."""

    def __init__(self):
        self.found = {}
        self.default = "plain"

    def put(self, metadata, status="available", volume_type="fast"):
        self.found[VOLUME] = Volume(VOLUME, status, 3, volume_type, metadata, 0.0, 0.0)

    def volume(self, volume_id):
        if volume_id not in self.found:
            raise NotFound(f"there is no volume {volume_id}")
        return self.found[volume_id]

    def default_type(self):
        if self.default is None:
            raise OSError("Cinder cannot be reached")
        return self.default

    def delete(self, volume_id):
        del self.found[volume_id]

    def wait_until_gone(self, volume_id):
        assert volume_id not in self.found


@pytest.fixture
def api(conf, monkeypatch):
    """Two stores there, of which one makes volumes of the type that Cinder takes if none is named."""
    conf.register_opt(cfg.DictOpt("enabled_backends"))
    conf.set_override("enabled_backends", {"usual": "cinder", "one": "cinder"})
    multi_backend.register_store_opts(conf)
    conf.set_override("cinder_volume_type", "fast", "one")
    for name in ("usual", "one"):
        conf.set_override("cinder_endpoint_template", "http://localhost:1/v3/%(project_id)s", name)
    assert multi_backend.create_multi_stores(conf) == 2
    api = Api()
    for name in ("usual", "one"):
        service = store(name).native.service
        monkeypatch.setattr(service, "user", lambda context: types.SimpleNamespace(api=api, attachments=None))
    return api


def store(name):
    return multi_backend.get_store_from_store_identifier(name)


def belongs(api):
    return [name for name in ("usual", "one") if store(name).is_image_associated_with_store(None, VOLUME)]


def test_glance_learns_which_store_a_volume_of_an_old_uri_is_in(api):
    api.put(OF_CINDER, volume_type="fast")
    assert belongs(api) == ["one"]
    api.put(OF_CINDER, volume_type="plain")
    assert belongs(api) == ["usual"]
    api.put(OF_CINDER, volume_type="other")
    assert belongs(api) == []


def test_what_cannot_be_found_out_is_no_reason_to_fail(api):
    assert belongs(api) == []
    api.put(OF_CINDER, volume_type="fast")
    api.default = None
    assert belongs(api) == ["one"]


@pytest.mark.parametrize("metadata", [OF_CINDER, {**OF_CINDER, "glance_image_id": "7"}])
def test_a_volume_that_cinder_made_an_image_is_one_as_a_whole(api, metadata):
    api.put(metadata)
    assert multi_backend.get_size_from_uri_and_backend(f"cinder://one/{VOLUME}", "one") == 3 << 30
    multi_backend.delete(f"cinder://one/{VOLUME}", "one")
    assert not api.found


@pytest.mark.parametrize(
    ("metadata", "status", "volume_type"),
    [
        ({}, "available", "fast"),
        ({**OF_CINDER, "image_size": "5"}, "available", "fast"),
        ({**OF_CINDER, "storelib_store": "one", "storelib_state": "writing"}, "available", "fast"),
        (OF_CINDER, "creating", "fast"),
        (OF_CINDER, "available", "other"),
    ],
)
def test_others_are_no_images(api, metadata, status, volume_type):
    api.put(metadata, status, volume_type)
    with pytest.raises(exceptions.NotFound):
        multi_backend.get_size_from_uri_and_backend(f"cinder://one/{VOLUME}", "one")


def test_what_was_stored_before_the_store_had_a_name_is_still_there(api):
    """A store without one writes down that it is cinder; Glance puts the name of the store into the URI afterwards."""
    whole = {"glance_image_id": "7", "image_size": "5", "storelib_state": "complete"}
    api.put({**whole, "storelib_store": "cinder"})
    assert multi_backend.get_size_from_uri_and_backend(f"cinder://one/{VOLUME}", "one") == 5
    api.put({**whole, "storelib_store": "usual"})
    with pytest.raises(exceptions.NotFound):
        multi_backend.get_size_from_uri_and_backend(f"cinder://one/{VOLUME}", "one")
