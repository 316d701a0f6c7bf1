# SPDX-License-Identifier: Apache-2.0
"""Jobs as the API tells them, and as they are kept for the next start."""

from __future__ import annotations

import json
import stat

import pytest
from cryptography import x509

from storelib.exceptions import Invalid
from storelib.node import certificates, jobs
from storelib.node.engine import Address
from storelib.preload import torrent
from storelib.preload.pieces import PieceHasher

DOCUMENT = {
    "preload": "p1",
    "image": "i1",
    "size": 5,
    "os_hash_algo": "sha256",
    "os_hash_value": "00",
    "disk_format": "raw",
    "torrent_url": "/v2/nodes/n/preloads/p1/torrent",
    "ca": "an authority",
    "certificate": None,
    "peers": [{"address": "192.0.2.1", "port": 9293}],
    "source": {"url": "/v2/preloads/sources/t/i1", "expires": "2026-01-01T00:00:00Z"},
}

#: Kept by a disk that changes bits.
BAD_JOB = json.dumps(
    [{"preload": "p", "image": "i", "size": "5", "os_hash_algo": "sha256", "os_hash_value": "", "peers": []}]
)


def torrent_of(name="i1", data=b"hello", authority="an authority"):
    hasher = PieceHasher()
    hasher.update(data)
    return torrent.torrent(name, hasher.finish(), authority)


def test_a_job_is_what_the_api_says():
    job = jobs.read(DOCUMENT, None)

    assert (job.image, job.size, job.peers) == ("i1", 5, [Address("192.0.2.1", 9293)])
    assert (job.source, job.expires) == ("/v2/preloads/sources/t/i1", 1767225600.0)


@pytest.mark.parametrize(
    "change",
    [
        {"image": "../etc/passwd"},
        {"image": ""},
        {"preload": "a/b"},
        {"preload": "."},
        {"size": -1},
        {"size": "many"},
        {"peers": ["192.0.2.1"]},
        {"source": "http"},
        {"os_hash_algo": None, "size": None},
        {"size": float("inf")},
        {"size": 2**70},
        {"peers": [{"address": "192.0.2.1", "port": 65536}]},
        {"disk_format": ["raw"]},
        {"virtual_size": "much"},
        {"certificate": 7},
        {"down_limit": -1},
    ],
)
def test_a_job_that_cannot_be_is_refused(change):
    with pytest.raises(Invalid):
        jobs.read(DOCUMENT | change, None)


def test_a_job_without_an_image_is_refused():
    with pytest.raises(Invalid):
        jobs.read({name: value for name, value in DOCUMENT.items() if name != "image"}, None)


def test_what_the_node_has_of_a_job_stays():
    job = jobs.read(DOCUMENT, None)
    job.key, job.certificate, job.torrent = "key", "certificate", torrent_of()

    again = jobs.read(DOCUMENT, job)

    assert (again.key, again.certificate, again.torrent) == (job.key, job.certificate, job.torrent)


def test_another_authority_wants_another_certificate():
    job = jobs.read(DOCUMENT, None)
    job.key, job.certificate = "key", "certificate"

    assert not jobs.read(DOCUMENT | {"ca": "another one"}, job).certified


def test_jobs_are_kept_for_the_next_start(tmp_path):
    job = jobs.read(DOCUMENT, None)
    job.key, job.torrent = "key", torrent_of()

    jobs.save(tmp_path, [job])
    [found] = jobs.load(tmp_path)

    job.source = job.expires = None
    assert found == job
    for path in tmp_path.rglob("*"):
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077
    jobs.save(tmp_path, [])
    assert jobs.load(tmp_path) == []
    assert list((tmp_path / "torrents").iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"image": 1}]', '[{"preload": "x"}]', BAD_JOB])
def test_jobs_that_cannot_be_read_are_none(tmp_path, text):
    (tmp_path / "jobs.json").write_text(text)

    assert jobs.load(tmp_path) == []


@pytest.mark.parametrize(
    "data",
    [torrent_of(name="another"), torrent_of(data=b"longer"), torrent_of(authority=None), torrent_of(authority="x")],
)
def test_only_the_torrent_of_the_job_is_taken(data):
    with pytest.raises(Invalid):
        jobs.check_torrent(jobs.read(DOCUMENT, None), data)


def test_a_torrent_on_disk_that_is_another_ones_is_fetched_again(tmp_path):
    job = jobs.read(DOCUMENT, None)
    job.torrent = torrent_of()
    jobs.save(tmp_path, [job])
    (tmp_path / "torrents" / "p1").write_bytes(torrent_of(name="another"))

    [found] = jobs.load(tmp_path)

    assert found.torrent is None
    found.torrent = torrent_of()
    jobs.save(tmp_path, [found])
    assert jobs.load(tmp_path)[0].torrent == torrent_of()


def test_a_certificate_is_wanted_for_the_name_of_the_torrent():
    job = jobs.read(DOCUMENT, None)

    request = x509.load_pem_x509_csr(job.wanted_csr("node-1", 0.0).encode())

    names = request.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["i1"]
    assert request.is_signature_valid
    assert "PRIVATE KEY" in job.key


def test_the_key_of_a_job_stays_the_same():
    job = jobs.read(DOCUMENT, None)
    job.wanted_csr("node-1", 0.0)
    key = job.key

    job.wanted_csr("node-1", 0.0)

    assert job.key == key


def test_a_key_that_is_damaged_is_made_anew():
    job = jobs.read(DOCUMENT, None)
    job.key, job.certificate = "what a disk made of it", "a certificate"

    assert x509.load_pem_x509_csr(job.wanted_csr("node-1", 0.0).encode()).is_signature_valid

    assert "PRIVATE KEY" in job.key
    # It is of the key that was.
    assert job.certificate is None


@pytest.mark.parametrize(("now", "wanted"), [(50.0, True), (100.0, False), (299.0, False), (301.0, True)])
def test_another_certificate_is_wanted_before_the_time_of_one_is_over_and_where_it_has_not_begun(
    monkeypatch, now, wanted
):
    monkeypatch.setattr(certificates, "validity", lambda certificate: (100.0, 400.0))
    job = jobs.read(DOCUMENT | {"certificate": "a certificate"}, None)

    assert (job.wanted_csr("node-1", now) is not None) == wanted


def test_without_an_authority_no_certificate_is_wanted():
    job = jobs.read(DOCUMENT | {"ca": None}, None)

    assert job.wanted_csr("node-1", 0.0) is None
    assert not job.certified


def test_keys_of_nodes_differ():
    assert certificates.new_key() != certificates.new_key()


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(5, 5.0), (5.5, 5.5), ("1970-01-01T00:00:10Z", 10.0), ("1970-01-01T00:00:10", 10.0), (None, None), ("x", None)],
)
def test_times_have_several_forms(value, seconds):
    assert jobs.seconds(value) == seconds
