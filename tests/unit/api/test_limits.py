# SPDX-License-Identifier: Apache-2.0
"""Limits of projects: what they count, and where they are asked for. Who knows them is played by a dictionary."""

from __future__ import annotations

import io
import json

import pytest
from deployment import OCTETS, Deployed
from oslo_config import cfg

from storelib.api.errors import Unavailable
from storelib.api.keystone_limits import KeystoneLimits
from storelib.api.service.limits import COUNT, SIZE, STAGED, UPLOADING, NoLimits, UnifiedLimits
from storelib.transfer.contract import MiB


class Known:
    """Limits by name; what is not there is 0. ``away``: nobody tells them."""

    def __init__(self, **limits):
        self.limits = limits
        self.away = False
        self.asked = 0

    def of(self, project_id, resources):
        self.asked += 1
        if self.away:
            raise Unavailable("not now")
        return {name: self.limits.get(name, 0) for name in resources}


class Limited(Deployed):
    @pytest.fixture
    def known(self):
        known = Known(**dict.fromkeys((SIZE, STAGED, COUNT, UPLOADING), 10))
        core = self.api.service.core
        core.limits = UnifiedLimits(known, core.repository)
        yield known
        core.limits = NoLimits()
        for project in (self.api.alice, self.api.bob):
            for image in project.get("/v2/images").json["images"]:
                if image["owner"] == project.project:
                    project.delete(f"/v2/images/{image['id']}")

    def send(self, what, image, size, *, declared=True):
        more = {"body": b"x" * size} if declared else {"extras": {"wsgi.input": io.BytesIO(b"x" * size)}}
        headers = OCTETS if declared else {**OCTETS, "Transfer-Encoding": "chunked"}
        return self.api.alice.request("PUT", f"/v2/images/{image}/{what}", headers, **more).status_code


class TestArithmetic(Limited):
    @pytest.mark.parametrize(
        ("limit", "size", "status"),
        [(1, MiB, 204), (1, 2 * MiB - 1, 204), (1, 2 * MiB, 413), (0, MiB - 1, 204), (0, MiB, 413), (-1, 3 * MiB, 204)],
    )
    @pytest.mark.parametrize(("what", "resource"), [("file", SIZE), ("stage", STAGED)])
    def test_bytes_count_in_whole_mebibytes(self, known, what, resource, limit, size, status):
        known.limits[resource] = limit
        assert self.send(what, self.api.alice.create(), size) == status

    @pytest.mark.parametrize(("what", "resource"), [("file", SIZE), ("stage", STAGED)])
    def test_data_of_unknown_size_may_exceed_a_limit_once(self, known, what, resource):
        known.limits[resource] = 1
        sent = [self.send(what, self.api.alice.create(), MiB, declared=False) for _ in range(3)]
        assert sent == [204, 204, 413]

    def test_the_limit_is_the_projects(self, known):
        known.limits[COUNT] = 1
        responses = [
            caller.post("/v2/images", {}).status_code for caller in (self.api.alice, self.api.alice, self.api.bob)
        ]
        assert responses == [201, 413, 201]

    def test_images_for_another_project_count_there(self, known):
        known.limits[COUNT] = 1
        responses = [self.api.admin.post("/v2/images", {"owner": "beta"}).status_code for _ in range(2)]
        assert responses == [201, 413]

    def test_one_that_is_over_its_limit_may_go_below_it(self, known):
        images = [self.api.alice.create() for _ in range(3)]
        known.limits[COUNT] = 1
        assert [self.api.alice.delete(f"/v2/images/{image}").status_code for image in images] == [204] * 3
        assert self.api.alice.post("/v2/images", {}).status_code == 201

    def test_usage_is_of_the_callers_project(self, known):
        known.limits[UPLOADING] = -1
        self.send("file", self.api.alice.create(), MiB)
        expected = {SIZE: (10, 1), STAGED: (10, 0), COUNT: (10, 1), UPLOADING: (-1, 0)}
        shown = {name: {"limit": limit, "usage": usage} for name, (limit, usage) in expected.items()}
        assert self.api.alice.get("/v2/info/usage").json == {"usage": shown}
        assert self.api.bob.get("/v2/info/usage").json["usage"][COUNT] == {"limit": 10, "usage": 0}

    def test_who_has_no_project_has_no_usage(self, known):
        assert self.api.nobody.get("/v2/info/usage").json == {"usage": {}}


class TestWhereTheyAreAsked(Limited):
    def test_what_is_refused_changes_nothing(self, known):
        image = self.api.alice.create()
        known.limits[UPLOADING] = 0
        assert [self.send(what, image, 5) for what in ("file", "stage")] == [413, 413]
        assert self.api.alice.show(image)["status"] == "queued"
        known.limits[UPLOADING] = 1
        assert self.send("file", image, 5) == 204

    def test_nobody_who_knows_them_is_503_and_changes_nothing(self, known):
        image = self.api.alice.create()
        known.away = True
        responses = [self.api.alice.post("/v2/images", {}).status_code, self.send("file", image, 5)]
        assert [*responses, self.send("stage", image, 5), self.api.alice.get("/v2/info/usage").status_code] == [503] * 4
        assert self.api.alice.show(image)["status"] == "queued"

    def test_reading_and_changing_ask_nothing(self, known):
        image = self.api.alice.active()
        asked = known.asked
        self.api.alice.show(image)
        self.api.alice.get("/v2/images")
        self.api.alice.download(image)
        self.api.alice.patch(image, {"op": "replace", "path": "/name", "value": "y"})
        self.api.alice.put(f"/v2/images/{image}/tags/red")
        assert known.asked == asked

    def test_copies_and_imports_are_limited(self, known):
        image = self.api.alice.create()
        assert self.send("stage", image, 2 * MiB) == 204
        known.limits[SIZE] = 1
        begin = {"method": {"name": "glance-direct"}}
        assert self.api.alice.post(f"/v2/images/{image}/import", begin).status_code == 413
        known.limits[SIZE] = 2
        assert self.api.alice.post(f"/v2/images/{image}/import", begin).status_code == 202
        self.api.settle()
        copy = {"method": {"name": "copy-image"}, "stores": ["mem"]}
        assert self.api.admin.post(f"/v2/images/{image}/import", copy).status_code == 413


class Says:
    """Keystone, which answers everything with one text."""

    def __init__(self, text):
        self.text = text

    def get(self, path, params):
        return self

    def json(self):
        return json.loads(self.text)


LIMIT = '{"limits": [{"resource_name": "image_count_total", "resource_limit": %s}]}'


@pytest.mark.parametrize(
    "text",
    ["[]", "null", "[" * 100_000, '{"limits": 5}', '{"limits": ["x"]}', *(LIMIT % n for n in ("1e999", "NaN", "null"))],
    ids=lambda text: text[-30:],
)
def test_nonsense_instead_of_limits_is_no_limits_for_now(tmp_path, monkeypatch, text):
    (tmp_path / "api.ini").write_text("[oslo_limit]\nendpoint_id = e\nauth_type = none\n")
    conf = cfg.ConfigOpts()
    conf(["--config-file", str(tmp_path / "api.ini")])
    limits = KeystoneLimits(conf, 0)
    monkeypatch.setattr(limits, "_keystone", Says('{"model": {"name": "flat"}, "endpoint": {"service_id": "s"}}'))
    limits._find_scope()
    monkeypatch.setattr(limits, "_keystone", Says(text))
    with pytest.raises(Unavailable):
        limits.of("p", [COUNT])
