# SPDX-License-Identifier: Apache-2.0
"""Policy, identity and the application as a whole: who one is, what rules say, what the operator may change."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import time

import bcrypt
import falcon.testing
import pytest
from deployment import FILE, Deployed, Deployment
from empty_database import make_empty_database
from oslo_policy import _checks, policy

import storelib.config
from storelib.api import config as api_config
from storelib.api import create_app
from storelib.api.context import Context
from storelib.api.errors import BadDatabase
from storelib.api.policy import RULES, get_enforcer, list_rules
from storelib.api.service.notifications import Notifier
from storelib.api.unknown_options import warn_of_unknown_options
from storelib.exceptions import BadStoreConfiguration, StoreError


def start(directory, text="", **conf):
    """The application as an operator would start it."""
    path = directory / "storelib.ini"
    path.write_text(FILE.format(directory=directory) + text)
    make_empty_database(directory / "images.sqlite")
    return create_app(storelib.config.load_file(path))


class TestRules(Deployed):
    def test_every_rule_is_documented(self):
        assert all(rule.description for rule in list_rules())

    def test_the_defaults_are_valid_rules(self):
        get_enforcer().check_rules(raise_on_violation=True)

    def test_a_rule_that_does_not_exist_allows_nothing(self):
        admin = Context("u", "p", ["admin"])
        assert not self.api.service.core.policy.allows(admin, "no_such_rule", {})

    def test_a_context_without_a_project_does_not_own_what_has_no_owner(self):
        image = self.api.admin.create(visibility="private", owner=None)
        unscoped = Context("u", None, ["member", "reader"])
        core = self.api.service.core
        assert not core.may_see(unscoped, core.repository.images.get(image))

    @pytest.mark.parametrize("name", sorted(rule.name for rule in RULES if rule.name not in ("default",)))
    def test_decisions_are_those_of_oslo_policy(self, name):
        """The cache must never answer otherwise than oslo.policy itself."""
        policy = self.api.service.core.policy
        targets = [
            {"project_id": owner, "owner": owner, "visibility": visibility, "member_id": member}
            for owner in ("alpha", "beta")
            for visibility in ("private", "public", "shared", "community")
            for member in ("alpha", "gamma")
        ]
        for roles in (["admin"], ["member", "reader"], ["reader"], ["service"], []):
            context = Context("u", "alpha", roles)
            credentials = {"roles": roles, "project_id": "alpha", "user_id": "u"}
            expected = [policy.enforcer.enforce(name, target, credentials) for target in targets]
            for _ in ("asked of oslo.policy", "remembered"):
                assert [policy.allows(context, name, target) for target in targets] == expected

    @pytest.mark.parametrize("module", ["policy", "config", "app", "service", "context", "middleware.error_handlers"])
    def test_every_entry_point_is_imported_alone(self, module):
        command = [sys.executable, "-W", "ignore", "-c", f"import storelib.api.{module}"]
        subprocess.run(command, check=True, timeout=60)


class TestUrls:
    @pytest.mark.parametrize("option", ["public_endpoint", "worker_self_reference_url"])
    @pytest.mark.parametrize(
        "value", ["images.example", "ftp://images.example", "https://", "http://h:0", "http://h:70000", "http://a b/"]
    )
    def test_what_is_no_url_is_named_at_the_start(self, tmp_path, option, value):
        with pytest.raises(BadStoreConfiguration, match=rf"{option}.*not a URL with http:// or https://"):
            start(tmp_path, f"{option} = {value}\n")

    @pytest.mark.parametrize("value", ["", "HTTPS://images.example/image/", "http://[fd00::1]:9292", "http://u:p@h"])
    def test_a_url_is_taken(self, tmp_path, value):
        start(tmp_path, f"public_endpoint = {value}\nworker_self_reference_url = {value}\n").close()


class TestPolicyFile:
    def test_a_file_that_is_broken_later_leaves_the_rules_as_they_are(self, tmp_path, monkeypatch):
        path = tmp_path / "policy.yaml"
        path.write_text(json.dumps({"get_images": "role:reader"}))
        api = Deployment(tmp_path, metrics=f"true\n[oslo_policy]\npolicy_file = {path}")
        monkeypatch.setattr("storelib.api.policy.RELOAD", 0.0)
        path.write_text("{ broken")
        os.utime(path, (time.time() + 5, time.time() + 5))
        response = api.alice.get("/v2/images")
        api.close()
        assert response.status_code == 200

    def test_a_broken_file_beside_others_leaves_the_rules_of_those(self, tmp_path, monkeypatch):
        monkeypatch.setattr("storelib.api.policy.RELOAD", 0.0)
        directory = tmp_path / "policy.d"
        directory.mkdir()
        (directory / "b.yaml").write_text(json.dumps({"get_images": "!"}))
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_dirs = {directory}\n")
        broken = directory / "a.yaml"
        broken.write_text("{ broken")
        os.utime(broken, (time.time() + 5, time.time() + 5))
        while_broken = [api.alice.get("/v2/images").status_code for _ in range(3)]
        broken.write_text(json.dumps({"publicize_image": "role:member"}))
        mended = [api.alice.get("/v2/images"), api.alice.post("/v2/images", {"visibility": "public"})]
        api.close()
        assert while_broken == [403, 403, 403]
        assert [response.status_code for response in mended] == [403, 201]

    @pytest.mark.parametrize("text", ["{ broken", "[1, 2]", "get_image: 5", "\ud800"])
    def test_a_file_that_cannot_be_read_is_named_at_the_start(self, tmp_path, text):
        path = tmp_path / "policy.yaml"
        path.write_bytes(text.encode(errors="surrogatepass"))
        with pytest.raises(BadStoreConfiguration, match=rf"^\[oslo_policy\] policy_file = {re.escape(str(path))}"):
            Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {path}\n")

    @pytest.mark.parametrize(
        ("rules", "cycle"),
        [
            ({"a": "rule:b", "b": "rule:a"}, "'a' -> 'b' -> 'a'"),
            ({"get_images": "not rule:get_images"}, "'get_images' -> 'get_images'"),
            ({"a": "@ and (role:x or rule:b)", "b": "rule:c", "c": "rule:b"}, "'b' -> 'c' -> 'b'"),
            ({"default": "rule:no_such_rule"}, "'default' -> 'default'"),
        ],
    )
    def test_rules_that_refer_to_themselves_are_named_at_the_start(self, tmp_path, rules, cycle):
        path = tmp_path / "policy.yaml"
        path.write_text(json.dumps(rules))
        with pytest.raises(BadStoreConfiguration, match=rf"{re.escape(str(path))}.* refer to themselves: {cycle}$"):
            Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {path}\n")

    def test_rules_that_come_to_refer_to_themselves_leave_the_rules_as_they_were(self, tmp_path, monkeypatch):
        monkeypatch.setattr("storelib.api.policy.RELOAD", 0.0)
        path = tmp_path / "policy.yaml"
        path.write_text(json.dumps({"get_images": "!"}))
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {path}\n")
        path.write_text(json.dumps({"get_images": "rule:a", "a": "rule:get_images"}))
        os.utime(path, (time.time() + 5, time.time() + 5))
        while_broken = [api.alice.get("/v2/images").status_code for _ in range(3)]
        path.write_text(json.dumps({"get_images": "@"}))
        os.utime(path, (time.time() + 9, time.time() + 9))
        mended = api.alice.get("/v2/images").status_code
        api.close()
        assert while_broken == [403, 403, 403]
        assert mended == 200

    def test_a_rule_may_be_referred_to_by_several(self, tmp_path):
        rules = {"get_images": "rule:a or rule:b", "a": "rule:c", "b": "rule:c and rule:a", "c": "@"}
        (tmp_path / "policy.yaml").write_text(json.dumps(rules))
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}\n")
        response = api.alice.get("/v2/images")
        api.close()
        assert response.status_code == 200

    def test_the_operators_file_changes_rules(self, tmp_path):
        (tmp_path / "policy.yaml").write_text(json.dumps({"publicize_image": "role:member", "get_images": "!"}))
        api = Deployment(tmp_path, metrics=f"true\n[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}")
        responses = [api.alice.post("/v2/images", {"visibility": "public"}), api.alice.get("/v2/images")]
        api.close()
        assert [response.status_code for response in responses] == [201, 403]

    def test_a_changed_file_is_noticed(self, tmp_path, monkeypatch):
        monkeypatch.setattr("storelib.api.policy.RELOAD", 0.0)
        path = tmp_path / "policy.yaml"
        path.write_text(json.dumps({"get_images": "!"}))
        api = Deployment(tmp_path, metrics=f"true\n[oslo_policy]\npolicy_file = {path}")
        assert api.alice.get("/v2/images").status_code == 403
        path.write_text(json.dumps({"get_images": "@"}))
        os.utime(path, (time.time() + 5, time.time() + 5))
        assert api.alice.get("/v2/images").status_code == 200
        api.close()

    @pytest.mark.parametrize("named", [True, False])
    def test_a_file_that_is_named_and_not_there_is_told_of(self, tmp_path, caplog, named):
        (tmp_path / "there.yaml").write_text("{}")
        name = "nowhere.yaml" if named else "there.yaml"
        Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {name}\n").close()
        assert ("policy_file = nowhere.yaml" in caplog.text) == named

    def test_rules_may_name_anything_of_an_image(self, tmp_path):
        (tmp_path / "policy.yaml").write_text(json.dumps({"delete_image": "'queued':%(status)s"}))
        api = Deployment(tmp_path, metrics=f"true\n[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}")
        queued, active = api.alice.create(), api.alice.active()
        responses = [api.alice.delete(f"/v2/images/{image}").status_code for image in (queued, active)]
        api.close()
        assert responses == [204, 403]

    @pytest.mark.parametrize("named", ["license", "name", "disk_format"])
    def test_a_rule_may_be_about_properties_and_attributes(self, tmp_path, named):
        """As in the restricted downloads of Glance's guide, where what the target does not have would allow them."""
        rules = {"restricted": f"'iso':%({named})s", "download_image": "role:admin or not rule:restricted"}
        (tmp_path / "policy.yaml").write_text(json.dumps(rules))
        more = f"[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}\n"
        api = Deployment(tmp_path, more, require_image_format_match=False)
        images = [api.alice.active(**values) for values in ({named: "iso"}, {"name": "other"})]
        responses = [who.download(image).status_code for who in (api.alice, api.admin) for image in images]
        api.close()
        assert responses == [403, 200, 200, 200]

    @pytest.mark.parametrize("named", ["license", "name", "disk_format"])
    @pytest.mark.parametrize("action", ["add_image", "publicize_image"])
    def test_a_rule_about_new_images_may_be_about_them_too(self, tmp_path, action, named):
        rules = {action: f"tenant:%(tenant)s and not 'iso':%({named})s"}
        (tmp_path / "policy.yaml").write_text(json.dumps(rules))
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}\n")
        visibility = "public" if action == "publicize_image" else "private"
        bodies = [{"visibility": visibility, named: value} for value in ("iso", "raw")]
        responses = [api.alice.post("/v2/images", body).status_code for body in bodies]
        api.close()
        assert responses == [403, 201]

    def test_no_property_says_whose_an_image_is(self, tmp_path):
        rules = {"get_image": "project_id:%(project_id)s or role:admin", "delete_image": "'x':%(anything)s"}
        (tmp_path / "policy.yaml").write_text(json.dumps(rules))
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}\n")
        nobodys = {"owner": None, "visibility": "public", "project_id": "beta", "tenant": "beta", "member_id": "beta"}
        image = api.admin.create(**nobodys)
        statuses = [who.get(f"/v2/images/{image}").status_code for who in (api.bob, api.admin)]
        api.close()
        assert statuses == [404, 200]

    @pytest.mark.parametrize(
        ("rule", "header", "value"),
        [
            ("user_domain_id:a", "X-User-Domain-Id", "a"),
            ("project_domain_id:a", "X-Project-Domain-Id", "a"),
            ("service_project_id:a", "X-Service-Project-Id", "a"),
            ("service_user_id:a", "X-Service-User-Id", "a"),
            ("is_admin_project:False", "X-Is-Admin-Project", "False"),
        ],
    )
    def test_rules_may_ask_what_tokens_say(self, tmp_path, rule, header, value):
        (tmp_path / "policy.yaml").write_text(json.dumps({"context_is_admin": f"role:member and {rule}"}))
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}\n")
        responses = [api.alice.request("GET", "/v2/tasks", headers) for headers in ({header: value}, {}, {header: "b"})]
        api.close()
        assert [response.status_code for response in responses[:2]] == [200, 403]

    def test_who_is_an_administrator_is_one_of_definitions_too(self, tmp_path):
        (tmp_path / "policy.yaml").write_text(json.dumps({"context_is_admin": "role:images_admin"}))
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {tmp_path / 'policy.yaml'}\n")
        callers = (api.caller("alpha", "images_admin", "member", "reader"), api.admin)
        responses = [who.post("/v2/metadefs/namespaces", {"namespace": "n"}).status_code for who in callers]
        api.close()
        assert responses == [201, 403]

    @pytest.mark.parametrize("form", ["%(status)s", "%(status).6s", "%(status)1s"])
    def test_a_decision_is_of_what_the_rule_names_in_whichever_form(self, tmp_path, form):
        (tmp_path / "policy.yaml").write_text(f"download_image: \"'active':{form}\"\n")
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n")
        alice, allows = Context("u", "alpha", ["member"]), api.service.core.policy.allows
        allowed = [allows(alice, "download_image", {"status": status}) for status in ("active", "deactivated")]
        assert allowed == [True, False]
        api.close()

    def test_what_checks_of_others_decide_is_not_remembered(self, tmp_path, monkeypatch):
        """Those of other packages are entry points (oslo.policy.rule_checks)."""
        asked = []

        class Odd(policy.Check):
            def __call__(self, target, creds, enforcer, current_rule=None):
                asked.append(target["image_id"])
                return len(asked) % 2 == 1

        monkeypatch.setitem(_checks.registered_checks, "odd", Odd)
        (tmp_path / "policy.yaml").write_text('download_image: "role:reader and not (not odd:x or !)"\n')
        api = Deployment(tmp_path, f"[oslo_policy]\npolicy_file = {tmp_path}/policy.yaml\n")
        reader = Context("u", "alpha", ["reader"])
        allowed = [api.service.core.policy.allows(reader, "download_image", {"image_id": n}) for n in (1, 2, 2)]
        assert (allowed, asked) == ([True, False, True], [1, 2, 2])
        api.close()


class TestScope(Deployed):
    """Images belong to projects; a token may also be of a domain, or of the whole system."""

    SCOPES = ({"domain_id": "elsewhere"}, {"system_scope": "all"}, {"system_scope": "all", "domain_id": "elsewhere"})

    # Older releases warn of what they refuse.
    @pytest.mark.filterwarnings("ignore:Policy .* failed scope check")
    @pytest.mark.parametrize("scope", SCOPES)
    @pytest.mark.parametrize("name", sorted(rule.name for rule in RULES))
    def test_decisions_are_those_of_oslo_policy(self, name, scope):
        policy = self.api.service.core.policy
        context = Context("u", None, ["admin", "member", "reader", "service"], **scope)
        credentials = {"roles": context.roles, "project_id": None, "user_id": "u", **scope}
        expected = policy.enforcer.enforce(name, {"project_id": "alpha"}, credentials)
        assert policy.allows(context, name, {"project_id": "alpha"}) == expected

    @pytest.mark.parametrize("scope", [{"X-Domain-Id": "elsewhere"}, {"OpenStack-System-Scope": "all"}])
    def test_administrators_of_something_else_are_none_of_any_project(self, scope):
        image = self.api.alice.active(visibility="private")
        of_project = {"X-Project-Id": ""}
        for headers, statuses in ((scope | of_project, {403, 404}), ({}, {200, 204})):
            assert self.api.admin.request("GET", f"/v2/images/{image}", headers).status_code in statuses
            assert self.api.admin.request("GET", f"/v2/images/{image}/file", headers).status_code in statuses
            assert self.api.admin.request("GET", f"/v1/images/{image}", headers).status_code in statuses
            assert self.api.admin.request("GET", "/v2/tasks", headers).status_code in statuses
            listed = self.api.admin.request("GET", "/v2/images", headers)
            assert listed.status_code in statuses
            assert (image in listed.text) == (listed.status_code == 200)
            assert self.api.admin.request("DELETE", f"/v2/images/{image}", headers).status_code in statuses

    def test_no_file_makes_administrators_of_something_else_ones_of_projects(self, tmp_path):
        path = tmp_path / "policy.yaml"
        path.write_text(json.dumps({"context_is_admin": "role:admin", "get_images": "@", "own": "role:admin"}))
        api = Deployment(tmp_path, metrics=f"true\n[oslo_policy]\npolicy_file = {path}")
        policy = api.service.core.policy
        api.close()
        of_project, of_system = Context("u", "p", ["admin"]), Context("u", None, ["admin"], system_scope="all")
        rules = ("context_is_admin", "get_images", "own")
        assert [policy.allows(of_project, rule, {}) for rule in rules] == [True, True, True]
        assert [policy.allows(of_system, rule, {}) for rule in rules] == [False, False, True]


class TestAnonymous(Deployed):
    def test_without_a_token_nothing_is_changed_whatever_the_rules_say(self):
        assert self.api.nobody.post("/v2/images", {}).status_code == 403


class TestNoauth:
    def test_everybody_is_an_administrator(self, tmp_path):
        app = start(tmp_path)
        client = falcon.testing.TestClient(app)
        response = client.simulate_post("/v2/images", json={"visibility": "public"})
        app.close()
        assert (response.status_code, response.json["owner"]) == (201, None)

    def test_closing_twice_does_no_harm(self, tmp_path):
        app = start(tmp_path)
        app.close()
        app.close()

    def test_the_application_is_mounted_below_a_path(self, tmp_path):
        app = start(tmp_path)
        client = falcon.testing.TestClient(app)
        response = client.simulate_get("/versions", root_path="/image")
        app.close()
        assert response.json["versions"][0]["links"][0]["href"].endswith("/image/v2/")

    @pytest.mark.parametrize(
        ("option", "named"),
        [
            ("hashing_algorithm = rot13", "rot13"),
            ("user_storage_quota = much", "user_storage_quota"),
            ("auth_strategy = hope", "auth_strategy"),
            ("limit_param_default = 0", "limit_param_default"),
            ("http_retries = some", "http_retries"),
            ("enabled_import_methods = telepathy", "enabled_import_methods"),
            (
                "import_allowed_networks = 10.0.0.0/8, intranet",
                r"\[api\] import_allowed_networks = .*intranet.*network",
            ),
            ("import_disallowed_networks = 10.0.0.0/80", r"\[api\] import_disallowed_networks"),
            ("shw_multiple_locations = true", "did you mean show_multiple_locations"),
        ],
    )
    def test_a_mistake_stops_the_start(self, tmp_path, option, named):
        with pytest.raises((BadStoreConfiguration, StoreError), match=named):
            start(tmp_path, option)


class TestMessageBus:
    def test_notifications_go_where_oslo_messaging_is_told(self, tmp_path):
        """The driver ``log`` is oslo.messaging's own. In a process of its own, for it may import eventlet."""
        path = tmp_path / "storelib.ini"
        bus = "notifications = true\n[DEFAULT]\ntransport_url = fake://\n[oslo_messaging_notifications]\ndriver = log\n"
        path.write_text(FILE.format(directory=tmp_path) + bus)
        program = [
            "import logging, sys, falcon.testing, storelib.config",
            "from storelib.api import create_app",
            "logging.basicConfig(level=logging.INFO)",
            "app = create_app(storelib.config.load_file(sys.argv[1]))",
            "falcon.testing.TestClient(app).simulate_post('/v2/images', json={'name': 'told'})",
            "app.close()",
        ]
        command = [sys.executable, "-c", "\n".join(program), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert '"image.create"' in done.stderr
        assert '"told"' in done.stderr

    def test_what_is_disabled_is_not_told(self):
        told = []
        notifier = Notifier(lambda *event: told.append(event), disabled=["image.member", "image.send"])
        for event in ("member.create", "send", "create"):
            notifier.error(event, "x")
        assert [event for _, event, _ in told] == ["image.create"]

    def test_a_bus_that_is_down_fails_no_request(self):
        def fail(*event):
            raise ConnectionError("down")

        Notifier(fail).error("create", "x")


# Older releases of oslo.cache import what says that it will go away, eventlet where it is installed.
@pytest.mark.filterwarnings("ignore")
class TestKeystone:
    @pytest.fixture
    def client(self, tmp_path):
        text = "auth_strategy = keystone\n[keystone_authtoken]\nwww_authenticate_uri = http://127.0.0.1:9/identity\n"
        app = start(tmp_path, text)
        yield falcon.testing.TestClient(app)
        app.close()

    def test_a_request_without_a_token_is_refused_with_the_place_to_get_one(self, client):
        response = client.simulate_get("/v2/images")
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == 'Keystone uri="http://127.0.0.1:9/identity"'

    def test_nobody_gives_himself_an_identity(self, client):
        headers = {"X-Identity-Status": "Confirmed", "X-Roles": "admin", "X-Project-Id": "p"}
        assert client.simulate_get("/v2/images", headers=headers).status_code == 401

    @pytest.mark.parametrize("path", ["/", "/versions", "/healthcheck", "/metrics"])
    def test_what_is_for_everybody_needs_no_token(self, client, path):
        assert client.simulate_get(path).status_code in (200, 300)


class TestBasicAuth:
    @pytest.fixture
    def client(self, tmp_path):
        users = tmp_path / "htpasswd"
        lines = [
            f"{name}:{bcrypt.hashpw(password, bcrypt.gensalt(4)).decode()}"
            for name, password in (("admin", b"secret"), ("eve", b"apple"))
        ]
        users.write_text("\n".join(lines))
        text = f"auth_strategy = http_basic\n[oslo_middleware]\nhttp_basic_auth_user_file = {users}\n"
        app = start(tmp_path, text)
        yield falcon.testing.TestClient(app)
        app.close()

    def headers(self, name, password):
        return {"Authorization": "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()}

    def test_users_have_a_project_of_their_own(self, client):
        response = client.simulate_post("/v2/images", json={}, headers=self.headers("eve", "apple"))
        assert (response.status_code, response.json["owner"]) == (201, "eve")

    def test_administrators_are_listed(self, client):
        body = {"visibility": "public"}
        for name, password, status in (("eve", "apple", 403), ("admin", "secret", 201)):
            response = client.simulate_post("/v2/images", json=body, headers=self.headers(name, password))
            assert response.status_code == status

    @pytest.mark.parametrize(("name", "password"), [("eve", "pear"), ("adam", "apple"), ("", "")])
    def test_a_wrong_password_is_refused_with_a_challenge(self, client, name, password):
        client.simulate_get("/v2/images", headers=self.headers("eve", "apple"))
        response = client.simulate_get("/v2/images", headers=self.headers(name, password))
        assert response.status_code == 401
        assert response.headers["www-authenticate"].startswith("Basic")

    @pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer x"}, {"Authorization": "Basic !"}])
    def test_what_is_no_password_is_refused(self, client, headers):
        assert client.simulate_get("/v2/images", headers=headers).status_code == 401

    def test_health_needs_no_password(self, client):
        assert client.simulate_get("/healthcheck").status_code == 200

    def test_a_file_that_is_not_there_stops_the_start(self, tmp_path):
        text = "auth_strategy = http_basic\n[oslo_middleware]\nhttp_basic_auth_user_file = /nowhere\n"
        with pytest.raises(BadStoreConfiguration, match="/nowhere"):
            start(tmp_path, text)


class TestWhoAsksIsSaid:
    @pytest.mark.parametrize(
        "section",
        [
            "[keystone_authtoken]\nusername = glance",
            "[paste_deploy]\nflavor = keystone+caching",
            "[oslo_middleware]\nhttp_basic_auth_user_file = /etc/users",
        ],
    )
    def test_sections_about_authentication_without_a_strategy_stop_the_start(self, tmp_path, section):
        with pytest.raises(BadStoreConfiguration, match=r"storelib.ini, line \d+.*everybody is an administrator"):
            start(tmp_path, f"\n{section}\n")

    def test_who_says_noauth_gets_it(self, tmp_path):
        start(tmp_path, "\nauth_strategy = noauth\n[keystone_authtoken]\nusername = glance\n").close()

    def test_what_nothing_reads_is_pointed_out(self, tmp_path, caplog):
        path = tmp_path / "storelib.ini"
        strangers = (
            "[sapre]\nread_only = true\n[apii]\nmetrics = no\n[database]\nmax_retries = 3\n[DEFAULT]\nbackdoor = 1\n"
        )
        strangers += "[cors]\nallowed_orign = https://x\n"
        others = "[oslo_messaging_rabbit]\nssl = true\n[oslo_policy]\nenforce_scope = true\n"
        path.write_text(FILE.format(directory=tmp_path) + strangers + others)
        conf = storelib.config.load_file(path)
        create_app(conf).close()
        warn_of_unknown_options(conf)
        said = [record.message for record in caplog.records if record.message.startswith("nothing reads")]
        assert [message.partition(" (")[0] for message in said] == [
            "nothing reads the section [sapre]",
            "nothing reads the section [apii]",
            "nothing reads [database] max_retries",
            "nothing reads [DEFAULT] backdoor",
            "nothing reads [cors] allowed_orign",
        ]
        assert "did you mean allowed_origin?" in said[4]
        assert "did you mean spare?" in said[0]
        assert "did you mean api?" in said[1]

    def test_relative_paths_are_of_the_directory_of_the_file(self, tmp_path, monkeypatch):
        path = tmp_path / "storelib.ini"
        text = FILE.format(directory=tmp_path).replace(f"sqlite:///{tmp_path}/", "sqlite:///")
        path.write_text(text.replace(f"staging_dir = {tmp_path}/", "staging_dir = "))
        monkeypatch.chdir("/")
        conf = storelib.config.load_file(path)
        app = create_app(conf)
        app.close()
        assert (tmp_path / "images.sqlite").exists()
        assert api_config.read_options(conf).staging_dir == str(tmp_path / "staging")

    @pytest.mark.parametrize(
        "url", ["mysql://u:pass$hidden@h/db", "hidden", "mysql://u:hidden@h:port/db", "x://hidden@h"]
    )
    def test_a_malformed_database_url_is_one_clear_line(self, tmp_path, url):
        path = tmp_path / "storelib.ini"
        path.write_text(FILE.format(directory=tmp_path).replace(f"sqlite:///{tmp_path}/images.sqlite", url))
        with pytest.raises((BadStoreConfiguration, BadDatabase)) as caught:
            create_app(storelib.config.load_file(path))
        assert "[database] connection" in str(caught.value)
        assert "hidden" not in str(caught.value)
        assert "\n" not in str(caught.value)
