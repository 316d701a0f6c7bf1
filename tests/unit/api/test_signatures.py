# SPDX-License-Identifier: Apache-2.0
"""Images with a signature: verified on every way in, by certificates of the key manager or of a directory."""

from __future__ import annotations

import base64
import http.server

import pytest
from castellan.common import exception
from deployment import OCTETS, READY, Deployed, Deployment
from key_manager import Memory, Signer
from web_servers import web_server

from storelib.exceptions import BadStoreConfiguration, InUseByStore
from storelib.registry import Registry

DATA = b"data that somebody signed" * 100_000
OTHER = b"data that nobody signed"
#: A kind of which keys are made fast.
FAST = "ECC_SECP384R1"
SECTIONS = "[key_manager]\nbackend = key_manager.Memory\n"


class Signing(Deployed):
    sections = SECTIONS
    signer: Signer

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _signer(cls, _deployed):
        cls.signer = Signer().keep("alpha")
        yield
        Memory.secrets.clear()

    def nothing_stays(self, image, status="queued"):
        """No store has data of the image, which is as it was."""
        shown = self.api.alice.show(image)
        assert (shown["status"], shown["checksum"], shown.get("stores")) == (status, None, None)
        assert image not in self.api.files()
        for name in ("mem", "spare"):
            assert self.api.registry[name].find_image(image) is None
        assert self.api.repository.uploads.get(image) is None


class TestUploads(Signing):
    @pytest.mark.parametrize("method", ["SHA-224", "SHA-256", "SHA-384", "SHA-512"])
    def test_signed_data_is_taken_and_other_data_is_not(self, method):
        properties = self.signer.sign(DATA, method)
        image = self.api.alice.create(**properties)
        response = self.api.alice.upload(image, OTHER)
        assert (response.status_code, "signature" in response.text) == (400, True)
        self.nothing_stays(image)
        assert self.api.alice.upload(image, DATA).status_code == 204
        assert self.api.alice.show(image)["status"] == "active"
        assert self.api.alice.download(image).content == DATA

    @pytest.mark.parametrize("kind", ["DSA", "ECC_SECP384R1", "ECC_SECP521R1"])
    def test_every_kind_of_key(self, kind):
        signer = Signer(kind).keep("alpha")
        image = self.api.alice.create(**signer.sign(DATA))
        assert self.api.alice.upload(image, DATA[:-1]).status_code == 400
        self.nothing_stays(image)
        assert self.api.alice.upload(image, DATA).status_code == 204

    @pytest.mark.parametrize("salt", [0, 32])
    def test_a_signer_takes_as_much_salt_as_it_likes(self, salt):
        assert (
            self.api.alice.upload(self.api.alice.create(**self.signer.sign(DATA, salt=salt)), DATA).status_code == 204
        )

    def test_base64_may_be_broken_into_lines(self):
        properties = self.signer.sign(DATA)
        signature = base64.b64decode(properties["img_signature"])
        properties["img_signature"] = base64.encodebytes(signature).decode()
        assert self.api.alice.upload(self.api.alice.create(**properties), DATA).status_code == 204

    def test_an_image_without_data_can_be_signed(self):
        image = self.api.alice.create(**self.signer.sign(b""))
        assert self.api.alice.upload(image, b"x").status_code == 400
        assert self.api.alice.upload(image, b"").status_code == 204

    @pytest.mark.parametrize("missing", ["img_signature", "img_signature_hash_method", "img_signature_key_type"])
    def test_a_part_of_a_signature_is_refused(self, missing):
        properties = self.signer.sign(DATA)
        del properties[missing]
        image = self.api.alice.create(**properties)
        response = self.api.alice.upload(image, DATA)
        assert (response.status_code, missing in response.text) == (400, True)
        self.nothing_stays(image)
        operation = {"op": "add", "path": f"/{missing}", "value": self.signer.sign(DATA)[missing]}
        assert self.api.alice.patch(image, operation).status_code == 200

    @pytest.mark.parametrize(
        "changed",
        [
            {"img_signature_key_type": "DSA"},
            {"img_signature_key_type": "ECC_SECP384R1"},
            {"img_signature_key_type": "ECC_SECT571K1"},
            {"img_signature_hash_method": "SHA-512"},
            {"img_signature_certificate_uuid": "00000000-0000-0000-0000-000000000000"},
            {"img_signature": "AAAA"},
            {"img_signature": "A"},
            {"img_signature": "===="},
        ],
    )
    def test_what_does_not_fit_the_signature_is_refused(self, changed):
        image = self.api.alice.create(**{**self.signer.sign(DATA), **changed})
        assert self.api.alice.upload(image, DATA).status_code == 400
        self.nothing_stays(image)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("img_signature", "not base64!"),
            ("img_signature", ""),
            ("img_signature", "A" * 8193),
            ("img_signature_hash_method", "MD5"),
            ("img_signature_hash_method", "sha-256"),
            ("img_signature_key_type", "RSA"),
            ("img_signature_certificate_uuid", "../../etc/passwd"),
            ("img_signature_certificate_uuid", "00000000-0000-0000-0000-000000000000\n"),
            ("cinder_encryption_key_id", "../orders/1"),
            ("cinder_encryption_key_id", ""),
            ("cinder_encryption_key_deletion_policy", "at_once"),
        ],
    )
    def test_values_that_cannot_be_are_refused_at_the_door(self, name, value):
        image = self.api.alice.create()
        assert self.api.alice.post("/v2/images", READY | {name: value}).status_code == 400
        assert self.api.alice.patch(image, {"op": "add", "path": f"/{name}", "value": value}).status_code == 400
        if value.isprintable():
            header = {f"x-image-meta-property-{name}": value, "x-image-meta-name": "x"}
            assert self.api.alice.request("POST", "/v1/images", header).status_code == 400

    def test_a_key_of_another_project_is_not_there(self):
        image = self.api.bob.create(**self.signer.sign(DATA))
        response = self.api.bob.upload(image, DATA)
        assert (response.status_code, self.signer.id in response.text) == (400, True)

    @pytest.mark.parametrize("days", [(-2, -1), (1, 2)])
    def test_a_certificate_is_valid_for_a_time(self, days):
        image = self.api.alice.create(**Signer(days=days).keep("alpha").sign(DATA))
        response = self.api.alice.upload(image, DATA)
        assert (response.status_code, "valid" in response.text) == (400, True)
        self.nothing_stays(image)

    def test_trouble_of_the_key_manager_is_told_without_its_address(self, monkeypatch):
        monkeypatch.setattr(Memory, "trouble", exception.KeyManagerError(reason="https://10.1.2.3/v1 does not answer"))
        image = self.api.alice.create(**self.signer.sign(DATA))
        response = self.api.alice.upload(image, DATA)
        assert (response.status_code, "10.1.2.3" in response.text) == (400, False)
        self.nothing_stays(image)

    def test_what_is_no_certificate_is_refused(self):
        signer = Signer()
        for secret in ("text", type(Memory.secrets["alpha", self.signer.id])(b"no certificate")):
            Memory.secrets["alpha", signer.id] = secret
            assert self.api.alice.upload(self.api.alice.create(**signer.sign(DATA)), DATA).status_code == 400

    def test_the_formats_of_signed_data_are_inspected_all_the_same(self):
        image = self.api.alice.create(disk_format="qcow2", **self.signer.sign(DATA))
        assert self.api.alice.upload(image, DATA).status_code == 415
        self.nothing_stays(image)


class TestVersion1(Signing):
    def create(self, properties, data):
        headers = {f"x-image-meta-{name}": value for name, value in READY.items()} | OCTETS
        headers |= {f"x-image-meta-property-{name}": value for name, value in properties.items()}
        return self.api.alice.request("POST", "/v1/images", headers, body=data)

    def test_signed_data_is_taken(self):
        assert self.create(self.signer.sign(DATA), DATA).json["image"]["status"] == "active"

    @pytest.mark.parametrize("missing", [None, "img_signature"])
    def test_an_image_with_other_data_is_killed(self, missing):
        properties = self.signer.sign(DATA)
        properties.pop(missing, None)
        before = {image["id"] for image in self.api.alice.get("/v2/images").json["images"]}
        assert self.create(properties, OTHER).status_code == 400
        [image] = {image["id"] for image in self.api.alice.get("/v2/images").json["images"]} - before
        self.nothing_stays(image, "killed")


class TestImports(Signing):
    options = {"import_allowed_ports": "", "import_allowed_networks": "127.0.0.0/8"}  # noqa: RUF012

    @pytest.fixture
    def web(self):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.send_header("Content-Length", str(len(DATA)))
                self.end_headers()
                self.wfile.write(DATA)

            def log_message(self, *arguments):
                pass

        with web_server(Handler) as url:
            yield f"{url}/image"

    def start(self, image, name, caller=None, uri=None, **more):
        method = {"name": name} if uri is None else {"name": name, "uri": uri}
        response = (caller or self.api.alice).post(f"/v2/images/{image}/import", {"method": method, **more})
        self.api.settle()
        return response.status_code

    @pytest.mark.parametrize(("signed", "status"), [(DATA, "active"), (OTHER, "queued")])
    def test_staged_data(self, signed, status):
        image = self.api.alice.create(**self.signer.sign(signed))
        assert self.api.alice.request("PUT", f"/v2/images/{image}/stage", OCTETS, body=DATA).status_code == 204
        assert self.start(image, "glance-direct", stores=["fast", "mem"]) == 202
        if status == "active":
            assert self.api.alice.show(image)["stores"] == "fast,mem"
        else:
            self.nothing_stays(image)
            [task] = self.api.alice.get(f"/v2/images/{image}/tasks").json["tasks"]
            assert (task["status"], "signature" in task["message"]) == ("failure", True)

    @pytest.mark.parametrize(("signed", "status"), [(DATA, "active"), (OTHER, "queued")])
    def test_data_of_the_web(self, signed, status, web):
        image = self.api.alice.create(**self.signer.sign(signed))
        assert self.start(image, "web-download", uri=web) == 202
        if status == "active":
            assert self.api.alice.show(image)["status"] == "active"
        else:
            self.nothing_stays(image)

    def test_a_part_of_a_signature_begins_no_import(self, web):
        image = self.api.alice.create(img_signature="AAAA")
        assert self.start(image, "web-download", uri=web) == 400
        self.nothing_stays(image)

    def test_copies(self):
        image = self.api.alice.active(DATA)
        for signed, stores in ((OTHER, "fast"), (DATA, "fast,mem")):
            properties = self.signer.sign(signed)
            operations = [{"op": "add", "path": f"/{name}", "value": value} for name, value in properties.items()]
            assert self.api.alice.patch(image, *operations).status_code == 200
            # The certificate is the caller's to read.
            self.signer.keep("admins")
            assert self.start(image, "copy-image", self.api.admin, stores=["mem"]) == 202
            assert self.api.alice.show(image)["stores"] == stores
            assert (self.api.registry["mem"].find_image(image) is not None) == (stores != "fast")


class TestTrust:
    """``default_trusted_certificate_ids``: who may have issued the certificate."""

    @pytest.fixture(scope="class")
    @classmethod
    def root(cls):
        return Signer(FAST, authority=True, path_length=1)

    def status(self, tmp_path, trusted, signer):
        for each in (*trusted, signer):
            (tmp_path / f"{each.id}.pem").write_bytes(each.pem)
        options = {
            "signature_certificates_dir": tmp_path,
            "default_trusted_certificate_ids": ",".join(each.id for each in trusted),
        }
        api = Deployment(tmp_path, **options)
        try:
            return api.alice.upload(api.alice.create(**signer.sign(DATA)), DATA).status_code
        finally:
            api.close()

    def test_what_a_root_issued_is_trusted(self, tmp_path, root):
        assert self.status(tmp_path, [root], Signer(FAST, issuer=root)) == 204

    def test_an_authority_between_has_to_be_trusted_as_well(self, tmp_path, root):
        between = Signer(FAST, issuer=root, authority=True)
        signer = Signer(FAST, issuer=between)
        assert self.status(tmp_path, [root], signer) == 400
        assert self.status(tmp_path, [root, between], signer) == 204

    def test_a_chain_is_no_longer_than_its_authorities_allow(self, tmp_path, root):
        first = Signer(FAST, issuer=root, authority=True)
        second = Signer(FAST, issuer=first, authority=True)
        assert self.status(tmp_path, [root, first, second], Signer(FAST, issuer=second)) == 400

    def test_what_issued_itself_is_trusted_by_name_only(self, tmp_path, root):
        assert self.status(tmp_path, [root], Signer(FAST)) == 400
        assert self.status(tmp_path, [root], root) == 204

    @pytest.mark.parametrize("days", [(-2, -1), (1, 2)])
    def test_an_issuer_is_valid_for_a_time(self, tmp_path, days):
        root = Signer(FAST, authority=True, days=days)
        assert self.status(tmp_path, [root], Signer(FAST, issuer=root)) == 400

    def test_an_issuer_is_an_authority(self, tmp_path):
        root = Signer(FAST)
        assert self.status(tmp_path, [root], Signer(FAST, issuer=root)) == 400

    def test_authorities_that_issued_each_other_lead_nowhere(self, tmp_path):
        first = Signer(FAST, authority=True)
        second = Signer(FAST, issuer=first, authority=True)
        again = Signer(FAST, issuer=second, authority=True, like=first)
        assert self.status(tmp_path, [second, again], Signer(FAST, issuer=second)) == 400


class TestDirectory(Deployed):
    def test_without_certificates_no_signature_is_good(self):
        signer = Signer()
        image = self.api.alice.create(**signer.sign(DATA))
        response = self.api.alice.upload(image, DATA)
        assert (response.status_code, "configured" in response.text) == (400, True)

    def test_a_file_that_is_no_certificate_is_refused(self, tmp_path):
        signer = Signer()
        api = Deployment(tmp_path, signature_certificates_dir=tmp_path)
        try:
            for content in (b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
                (tmp_path / f"{signer.id}.pem").write_bytes(content)
                response = api.alice.upload(api.alice.create(**signer.sign(DATA)), DATA)
                assert (response.status_code, str(tmp_path) in response.text) == (400, False)
        finally:
            api.close()

    @pytest.mark.parametrize(
        ("sections", "options"),
        [
            ("", {"signature_certificates_dir": "/there/is/none"}),
            ("", {"default_trusted_certificate_ids": "../x"}),
            ("[key_manager]\nbackend = there.is.none\n", {}),
        ],
    )
    def test_what_cannot_be_is_told_at_the_start(self, tmp_path, sections, options):
        with pytest.raises(BadStoreConfiguration, match=r"signature_|trusted|key_manager"):
            Deployment(tmp_path, sections, **options)


class TestEncryptionKeys(Deployed):
    sections = SECTIONS

    @pytest.fixture
    def key(self):
        Memory.secrets["alpha", "the-key"] = "secret"
        yield "the-key"
        Memory.secrets.clear()

    @pytest.mark.parametrize("data", [None, DATA])
    @pytest.mark.parametrize(("policy", "stays"), [("on_image_deletion", False), ("do_not_delete", True), (None, True)])
    def test_a_key_is_deleted_with_its_image_if_that_says_so(self, key, policy, stays, data):
        properties = {"cinder_encryption_key_id": key}
        if policy:
            properties["cinder_encryption_key_deletion_policy"] = policy
        image = self.api.alice.create(**properties)
        if data:
            self.api.alice.upload(image, data)
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert (("alpha", key) in Memory.secrets) == stays

    def test_an_image_that_stays_keeps_its_key(self, key, monkeypatch):
        properties = {"cinder_encryption_key_id": key, "cinder_encryption_key_deletion_policy": "on_image_deletion"}
        image = self.api.alice.active(DATA, **properties)

        def fail(*arguments):
            raise InUseByStore("mapped by a host")

        with monkeypatch.context() as patch:
            patch.setattr(self.api.registry["fast"], "delete", fail)
            assert self.api.alice.delete(f"/v2/images/{image}").status_code == 409
        assert ("alpha", key) in Memory.secrets
        assert self.api.alice.patch(image, {"op": "replace", "path": "/protected", "value": True}).status_code == 200
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 403
        assert ("alpha", key) in Memory.secrets

    def test_nobody_has_an_administrator_delete_keys_of_another_project(self):
        """The id is the user's to choose: the token of who cleans up after the user may be good for other keys."""
        Memory.secrets["admins", "precious"] = "secret"
        properties = {
            "cinder_encryption_key_id": "precious",
            "cinder_encryption_key_deletion_policy": "on_image_deletion",
        }
        image = self.api.alice.active(DATA, **properties)
        assert self.api.admin.delete(f"/v2/images/{image}").status_code == 204
        assert Memory.secrets.pop(("admins", "precious")) == "secret"

    @pytest.mark.parametrize(
        "trouble",
        [None, exception.Forbidden(), exception.KeyManagerError(reason="x"), ValueError("x")],
        ids=lambda error: type(error).__name__,
    )
    def test_an_image_is_deleted_also_where_its_key_cannot_be(self, trouble, monkeypatch):
        monkeypatch.setattr(Memory, "trouble", trouble)
        properties = {"cinder_encryption_key_id": "gone", "cinder_encryption_key_deletion_policy": "on_image_deletion"}
        image = self.api.alice.active(DATA, **properties)
        assert self.api.alice.delete(f"/v2/images/{image}").status_code == 204
        assert self.api.alice.get(f"/v2/images/{image}").status_code == 404


def test_castellan_is_needed_where_it_is_configured(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "castellan", None)
    with pytest.raises(Exception, match=r"castellan.*storelib\[castellan\]"):
        Deployment(tmp_path, SECTIONS)


def test_no_store_is_called_like_the_section_of_the_key_manager(tmp_path):
    from storelib.config import load_file

    (tmp_path / "x.ini").write_text("[storelib]\nstores = key_manager:memory\n")
    with pytest.raises(BadStoreConfiguration):
        Registry.from_conf(load_file(tmp_path / "x.ini"))


def test_barbican_is_the_key_manager_where_nothing_but_its_section_is_there(tmp_path):
    """As in files of Glance."""
    api = Deployment(
        tmp_path, "[barbican]\nauth_endpoint = http://127.0.0.1:1/v3\n", signature_certificates_dir=tmp_path
    )
    try:
        assert api.service.core.keys is not None
        signer = Signer(FAST)
        (tmp_path / f"{signer.id}.pem").write_bytes(signer.pem)
        image = api.alice.create(**signer.sign(DATA))
        response = api.alice.upload(image, DATA)
        assert (response.status_code, "127.0.0.1" in response.text) == (400, False)
        assert api.alice.show(image)["status"] == "queued"
    finally:
        api.close()
