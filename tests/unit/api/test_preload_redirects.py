# SPDX-License-Identifier: Apache-2.0
"""Nodes with a ticket that get the bytes elsewhere: from the store itself, or from another process of the API."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from deployment import Deployment
from preload_nodes import SECTIONS, FakeNode, forget_nodes, preload

from storelib.api.db.records import Changes, NewLocation
from storelib.api.service.preload.redirects import Redirects
from storelib.capabilities import Capability
from storelib.exceptions import BadStoreConfiguration, RemoteServiceUnavailable

DATA = bytes(range(250))
OTHERS = ["https://one.example:9292", "https://two.example/image"]


def deployed_with(tmp_path_factory, lines):
    deployment = Deployment(tmp_path_factory.mktemp("api"), SECTIONS + lines)
    yield deployment
    deployment.close()


@pytest.fixture(scope="module")
def to_stores(tmp_path_factory):
    yield from deployed_with(tmp_path_factory, "redirect_to_stores = true\nredirect_lifetime = 77\n")


@pytest.fixture(scope="module")
def to_others(tmp_path_factory):
    yield from deployed_with(tmp_path_factory, f"source_urls = {OTHERS[0]}/, {OTHERS[1]}\n")


@pytest.fixture
def signing(to_stores, monkeypatch):
    """Has a store sign URLs, or raise what it is told to."""

    def let(name, error=None):
        store = to_stores.registry[name]

        def presign(uri, expires):
            if error is not None:
                raise error
            return f"https://{name}.example/{uri.rpartition('/')[2]}?Signature=%2B&Expires={expires:g}"

        monkeypatch.setattr(store, "capabilities", store.capabilities | Capability.PRESIGN)
        monkeypatch.setattr(store, "presign", presign)

    return let


def active(api, store):
    image = api.alice.create()
    assert api.alice.upload(image, DATA, X_Image_Meta_Store=store).status_code == 204
    return image


def source_of(api, image):
    """The path at which a node gets an image."""
    forget_nodes(api)
    node = FakeNode(api, "n1")
    [one] = preload(api, image)
    return node.job(one)["source"]["url"]


def test_a_store_that_signs_urls_sends_the_bytes(to_stores, signing):
    signing("fast")
    image = active(to_stores, "fast")
    response = to_stores.nobody.get(source_of(to_stores, image), Range="bytes=10-19")
    assert response.status_code == 302
    assert response.headers["location"] == f"https://fast.example/{image}?Signature=%2B&Expires=77"
    assert response.headers["cache-control"] == "no-store"
    assert response.content == b""


def test_the_api_sends_what_no_store_signs_a_url_for(to_stores, signing):
    signing("fast", RemoteServiceUnavailable("the store is away"))
    for store in ("mem", "fast"):
        image = active(to_stores, store)
        response = to_stores.nobody.get(source_of(to_stores, image), Range="bytes=10-19")
        assert (response.status_code, response.content) == (206, DATA[10:20])


def test_data_that_others_put_somewhere_is_sent_by_the_api(to_stores, signing):
    signing("fast")
    image = active(to_stores, "fast")
    path = source_of(to_stores, image)
    foreign = to_stores.directory / "images" / "others"
    foreign.write_bytes(DATA)
    images = to_stores.repository.images
    images.update(images.get(image), Changes(locations=(NewLocation(f"file://{foreign}", {"store": "fast"}),)))
    response = to_stores.nobody.get(path)
    assert (response.status_code, response.content) == (200, DATA)


def test_another_process_sends_the_bytes(to_others):
    image = to_others.alice.active(DATA)
    path = source_of(to_others, image)
    found = {to_others.nobody.get(path).headers["location"] for _ in range(40)}
    assert found == {other + path for other in OTHERS}


@pytest.mark.parametrize("where", ["to_stores", "to_others"])
def test_nobody_without_a_ticket_is_sent_anywhere(request, where):
    api = request.getfixturevalue(where)
    image = api.alice.active(DATA)
    path = source_of(api, image)
    assert api.nobody.get(path.replace(image, api.alice.active())).status_code == 404
    assert api.nobody.get(f"/v2/preloads/sources/{'x' * 43}/{image}").status_code == 404
    assert api.admin.post(f"/v2/images/{image}/actions/deactivate").status_code == 204
    assert api.nobody.get(path).status_code == 404


def test_what_is_no_url_is_no_other_process():
    options = SimpleNamespace(source_urls=["https://one.example", "two.example"], redirect_to_stores=False)
    with pytest.raises(BadStoreConfiguration, match="source_urls"):
        Redirects(SimpleNamespace(options=SimpleNamespace(preload=options)))
