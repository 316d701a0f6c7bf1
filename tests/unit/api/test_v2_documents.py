# SPDX-License-Identifier: Apache-2.0
"""Documents that are encoded once are those of the image as it is now, and those of the caller who asks."""

from __future__ import annotations

import pytest
from deployment import Deployment

from storelib.api.v2 import documents

PROTECTIONS = """
[^secret$]
create = admin
read = admin
update = admin
delete = admin
[.*]
create = @
read = @
update = @
delete = @
"""


@pytest.fixture
def deploy(tmp_path):
    made = []

    def deployment(**options):
        made.append(Deployment(tmp_path, **options))
        return made[-1]

    yield deployment
    for each in made:
        each.close()


def both(caller, image_id):
    """The image as it is shown and as it is listed."""
    [listed] = caller.get(f"/v2/images?id={image_id}").json["images"]
    return caller.show(image_id), listed


def test_a_change_by_another_process_is_shown(deploy):
    api = deploy()
    image_id = api.alice.create(name="before")
    both(api.alice, image_id)
    others = api.another_process().core.repository
    others.images.add_tag(image_id, "new")
    shown, listed = both(api.alice, image_id)
    assert shown["tags"] == listed["tags"] == ["new"]
    others.close()


def test_who_may_not_read_a_property_does_not_see_what_others_were_shown(deploy, tmp_path):
    path = tmp_path / "protections.conf"
    path.write_text(PROTECTIONS)
    api = deploy(property_protection_file=path)
    image_id = api.admin.create(visibility="public", secret="x", open="y")
    for _ in range(2):
        assert [document.get("secret") for document in both(api.admin, image_id)] == ["x", "x"]
        assert [document.get("secret") for document in both(api.alice, image_id)] == [None, None]


@pytest.mark.parametrize(
    ("option", "field"), [("show_multiple_locations", "locations"), ("show_image_direct_url", "direct_url")]
)
def test_who_may_not_know_where_data_is_does_not_see_what_others_were_shown(deploy, option, field):
    api = deploy(**{option: True})
    image_id = api.admin.active(visibility="public")
    for _ in range(2):
        assert [field in document for document in both(api.admin, image_id)] == [True, True]
        assert [field in document for document in both(api.bob, image_id)] == [False, False]


def test_what_is_remembered_is_bounded(deploy, monkeypatch):
    monkeypatch.setattr(documents, "MEMORY", 3)
    api = deploy()
    context = api.service.core
    remembering = documents.ImageDocuments(context)
    images = [context.repository.images.get(api.alice.create(name=str(number))) for number in range(5)]
    large = context.repository.images.get(api.alice.create(large="v" * documents.LARGEST))
    for image in [*images, large]:
        remembering.encode(None, image)
        assert len(remembering._encoded) <= 3
    assert remembering._encoded.get(large.id) is None
    assert [remembering._encoded.get(image.id) is not None for image in images] == [False, False, True, True, True]


def test_documents_are_utf_8(deploy):
    api = deploy()
    image_id = api.alice.create(name="Bücher 📚", beschreibung='日本語 \\ "')
    for document in both(api.alice, image_id):
        assert (document["name"], document["beschreibung"]) == ("Bücher 📚", '日本語 \\ "')
