# SPDX-License-Identifier: Apache-2.0
"""Members in v1: share an image, let others share it, and see what is shared."""

from __future__ import annotations

import pytest
from deployment import Deployed
from sqlalchemy import event
from v1_client import created


class Shared(Deployed):
    @pytest.fixture
    def image(self):
        return created(self.api.alice, b"shared")

    def members(self, image, caller=None):
        response = (caller or self.api.alice).get(f"/v1/images/{image}/members")
        assert response.status_code == 200, response.text
        return {item["member_id"]: item["can_share"] for item in response.json["members"]}

    def put(self, image, member, can_share=None, caller=None):
        body = None if can_share is None else {"member": {"can_share": can_share}}
        return (caller or self.api.alice).put(f"/v1/images/{image}/members/{member}", body).status_code

    def replace(self, image, *memberships, caller=None):
        body = {"memberships": list(memberships)}
        return (caller or self.api.alice).put(f"/v1/images/{image}/members", body).status_code


class TestMembers(Shared):
    options = {"image_member_quota": 3}  # noqa: RUF012

    def test_an_image_has_none_at_first(self, image):
        assert self.members(image) == {}

    def test_a_member_sees_and_reads_the_image_and_nobody_else_does(self, image):
        assert self.put(image, "beta") == 204
        assert self.members(image) == {"beta": False}
        assert self.api.bob.get(f"/v1/images/{image}").content == b"shared"
        assert self.api.caller("gamma", "member", "reader").get(f"/v1/images/{image}").status_code == 404

    def test_the_id_of_a_member_may_have_slashes(self, image):
        assert self.put(image, "a/b", True) == 204
        assert self.members(image) == {"a/b": True}
        shared = self.api.admin.get("/v1/shared-images/a/b").json["shared_images"]
        assert {"image_id": image, "can_share": True} in shared
        assert self.api.alice.delete(f"/v1/images/{image}/members/a/b").status_code == 204
        assert self.members(image) == {}

    @pytest.mark.parametrize(
        ("first", "second", "after"),
        [
            (None, None, False),
            (None, True, True),
            (True, None, True),
            (True, False, False),
            (True, True, True),
        ],
    )
    def test_putting_a_member_again_changes_what_is_said(self, image, first, second, after):
        assert self.put(image, "beta", first) == 204
        assert self.put(image, "beta", second) == 204
        assert self.members(image) == {"beta": after}

    def test_all_can_be_replaced(self, image):
        self.put(image, "beta", True)
        self.put(image, "gamma", True)
        self.put(image, "delta", True)
        wanted = {"member_id": "gamma"}, {"member_id": "delta", "can_share": False}, {"member_id": "new"}
        assert self.replace(image, *wanted) == 204
        assert self.members(image) == {"gamma": True, "delta": False, "new": False}
        assert self.replace(image) == 204
        assert self.members(image) == {}

    def test_a_member_can_be_removed(self, image):
        self.put(image, "beta")
        path = f"/v1/images/{image}/members/beta"
        assert self.api.alice.delete(path).status_code == 204
        assert self.members(image) == {}
        assert self.api.alice.delete(path).status_code == 404
        assert self.api.bob.get(f"/v1/images/{image}").status_code == 404

    def test_they_are_listed_in_pages(self, image):
        for member in ("a", "b", "c"):
            self.put(image, member)
        get = self.api.alice.get
        path = f"/v1/images/{image}/members"
        assert [item["member_id"] for item in get(f"{path}?limit=2").json["members"]] == ["a", "b"]
        assert [item["member_id"] for item in get(f"{path}?limit=2&marker=b").json["members"]] == ["c"]
        assert get(f"{path}?marker=nobody").status_code == 400

    def test_there_is_a_limit(self, image):
        four = [{"member_id": str(number)} for number in range(4)]
        assert self.replace(image, *four) == 413
        assert self.replace(image, *four[:3]) == 204
        assert self.put(image, "four") == 413
        assert self.put(image, "1", True) == 204
        assert self.members(image) == {"0": False, "1": True, "2": False}

    @pytest.mark.parametrize(
        "body",
        [
            [],
            {},
            {"memberships": "beta"},
            {"memberships": ["beta"]},
            {"memberships": [{"can_share": True}]},
            {"memberships": [{"member_id": 1}]},
            {"memberships": [{"member_id": "x" * 256}]},
            {"memberships": [{"member_id": "beta", "can_share": "perhaps"}]},
        ],
    )
    def test_a_body_that_is_no_list_of_members_changes_nothing(self, image, body):
        self.put(image, "beta")
        assert self.api.alice.put(f"/v1/images/{image}/members", body).status_code == 400
        assert self.members(image) == {"beta": False}

    @pytest.mark.parametrize("body", [[], {}, {"member": []}, {"member": {"can_share": 1}}])
    def test_so_does_a_body_that_is_no_member(self, image, body):
        assert self.api.alice.put(f"/v1/images/{image}/members/beta", body).status_code == 400
        assert self.members(image) == {}


class TestWhoShares(Shared):
    def everything(self, image, caller):
        """The status of each way to change who an image is shared with."""
        return {
            self.put(image, "delta", caller=caller),
            self.replace(image, {"member_id": "delta"}, caller=caller),
            caller.delete(f"/v1/images/{image}/members/delta").status_code,
        }

    def test_strangers_and_plain_members_do_not(self, image):
        assert self.everything(image, self.api.bob) == {404}
        self.put(image, "beta")
        assert self.everything(image, self.api.bob) == {404}
        assert self.everything(image, self.api.colleague) == {404}

    def test_requests_without_a_token_are_to_bring_one(self, image):
        assert self.everything(image, self.api.nobody) == {401}

    def test_administrators_do(self, image):
        assert self.everything(image, self.api.admin) == {204}

    def test_a_member_that_can_share_does(self, image):
        self.put(image, "beta", True)
        assert self.put(image, "gamma", caller=self.api.bob) == 204
        assert self.members(image) == {"beta": True, "gamma": False}
        assert self.api.bob.delete(f"/v1/images/{image}/members/gamma").status_code == 204

    def test_that_a_member_can_share_lets_it_do_nothing_else(self, image):
        self.put(image, "beta", True)
        assert self.api.bob.delete(f"/v1/images/{image}").status_code == 403
        assert self.api.bob.request("PUT", f"/v1/images/{image}", {"x-image-meta-name": "x"}).status_code == 403

    def test_public_and_private_images_are_not_shared(self):
        public = created(self.api.admin, is_public="True")
        private = self.api.alice.create(visibility="private")
        assert self.members(public) == {}
        assert self.put(public, "beta", caller=self.api.admin) == 404
        assert self.put(private, "beta") == 404

    def test_who_may_not_see_the_image_is_not_told_its_members(self, image):
        assert self.api.bob.get(f"/v1/images/{image}/members").status_code == 404


class TestSharedImages(Shared):
    def shared(self, member, caller):
        response = caller.get(f"/v1/shared-images/{member}")
        assert response.status_code == 200
        return {item["image_id"]: item["can_share"] for item in response.json["shared_images"]}

    def test_each_sees_what_concerns_him(self, image):
        other = created(self.api.admin)
        self.put(image, "beta", True)
        self.put(other, "beta", caller=self.api.admin)
        assert self.shared("beta", self.api.bob) == {image: True, other: False}
        assert self.shared("beta", self.api.admin) == {image: True, other: False}
        assert self.shared("beta", self.api.alice) == {image: True}
        assert self.shared("beta", self.api.caller("gamma", "member", "reader")) == {}
        assert self.shared("nobody", self.api.alice) == {}

    def test_they_are_listed_in_pages(self):
        made = sorted(created(self.api.alice) for _ in range(5))
        for image in made:
            self.put(image, "paged")
        assert list(self.shared("paged?limit=2", self.api.alice)) == made[:2]
        assert list(self.shared(f"paged?limit=2&marker={made[1]}", self.api.alice)) == made[2:4]
        assert list(self.shared(f"paged?marker={made[3]}", self.api.alice)) == made[4:]
        assert self.shared("paged?limit=0", self.api.alice) == {}
        assert self.api.alice.get("/v1/shared-images/paged?limit=x").status_code == 400

    def test_a_page_goes_on_behind_what_the_caller_may_not_know(self, image):
        hidden, own = (sorted(created(caller) for _ in range(3)) for caller in (self.api.admin, self.api.alice))
        for each in (*hidden, *own):
            self.put(each, "mixed", caller=self.api.admin)
        assert list(self.shared("mixed?limit=2", self.api.alice)) == own[:2]
        assert list(self.shared(f"mixed?limit=2&marker={own[1]}", self.api.alice)) == own[2:]

    @pytest.mark.parametrize("caller", ["bob", "admin", "alice"])
    def test_they_are_read_by_one_statement(self, image, caller):
        for each in (image, *(created(self.api.alice) for _ in range(10))):
            self.put(each, "beta")
        statements = []
        engine = self.api.repository.database.engine
        event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
        assert len(self.shared("beta", getattr(self.api, caller))) >= 11
        assert len(statements) == 1

    def test_an_image_that_is_deleted_is_not_shared_any_more(self, image):
        self.put(image, "gamma")
        self.api.alice.delete(f"/v1/images/{image}")
        assert image not in self.shared("gamma", self.api.admin)


class TestLargestPages(Shared):
    options = {"api_limit_max": 2}  # noqa: RUF012

    @pytest.mark.parametrize("query", ["", "?limit=3", "?limit=" + "9" * 19])
    def test_no_list_is_longer_than_the_operator_allows(self, image, query):
        for each in (image, created(self.api.alice), created(self.api.alice)):
            self.put(each, "beta")
        self.replace(image, *({"member_id": member} for member in ("beta", "b", "c")))
        get = self.api.alice.get
        assert len(get(f"/v1/shared-images/beta{query}").json["shared_images"]) == 2
        assert len(get(f"/v1/images/{image}/members{query}").json["members"]) == 2
        assert len(get(f"/v2/images/{image}/members{query}").json["members"]) == 2


class TestAccessLists(Shared):
    def test_stores_let_members_read_and_those_that_can_share_write(self, image, monkeypatch):
        from storelib.capabilities import Capability

        calls = []
        store = self.api.registry["fast"]
        monkeypatch.setattr(store, "capabilities", store.capabilities | Capability.ACLS)
        monkeypatch.setattr(store, "set_acls", lambda uri, *rest: calls.append(rest[:3]))
        self.put(image, "beta")
        self.put(image, "gamma", True)
        self.replace(image, {"member_id": "gamma"})
        assert calls == [(False, ["beta"], []), (False, ["beta", "gamma"], ["gamma"]), (False, ["gamma"], ["gamma"])]
