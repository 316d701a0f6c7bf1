# SPDX-License-Identifier: Apache-2.0
"""Two hundred transfers at once, a tebibyte of holes, eight stores: in a process of 512 MiB, which gives all back.

Where librados is loaded the limit is on the memory that is used, and the budget is given: its threads alone have more
addresses, and do not run on smaller stacks.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from servers import crowd
from servers.ceph import radosgw

KiB, MiB, TiB = 1 << 10, 1 << 20, 1 << 40
LIMIT = 512 * MiB


@pytest.fixture(scope="module")
def ceph(tmp_path_factory):
    """One cluster for S3 and for RBD."""
    with radosgw(tmp_path_factory.mktemp("ceph")) as server:
        server.cluster.add_pool("images")
        yield server


def file(path):
    return {"driver": "file", "options": {"filesystem_store_datadir": str(path), "filesystem_thin_provisioning": True}}


def s3(server):
    options = {
        "s3_store_host": server.s3_endpoint,
        "s3_store_access_key": server.access_key,
        "s3_store_secret_key": server.secret_key,
        "s3_store_bucket": "many",
        "s3_store_create_bucket_on_put": True,
    }
    return {"driver": "s3", "options": options}


def rbd(server):
    return {"driver": "rbd", "options": {"rbd_store_ceph_conf": str(server.cluster.conf_file)}}


def limit_addresses():
    """``ulimit -v``, and stacks that fit in that."""
    resource.setrlimit(resource.RLIMIT_STACK, (512 * KiB, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))


def run(wanted, tmp_path, by_addresses=True):
    """What such a process tells, once it has done it all."""
    if not by_addresses:
        wanted["budget"] = LIMIT // 4
    process = subprocess.run(
        [sys.executable, crowd.__file__, json.dumps({"directory": str(tmp_path), **wanted})],
        stdout=subprocess.PIPE,
        preexec_fn=limit_addresses if by_addresses else None,
        # Each arena of malloc is 64 MiB of addresses.
        env={**os.environ, "MALLOC_ARENA_MAX": "1", "PYTHONPATH": str(Path(crowd.__file__).parents[3])},
        timeout=500,
        check=True,
    )
    told = json.loads(process.stdout)
    assert told["peak"] < LIMIT
    assert told["still held"] == 0
    assert told["images"] == told["garbage"] == []
    return told


def test_two_hundred_adds_and_gets_of_files(tmp_path):
    told = run({"stores": [file(tmp_path / "images")], "count": 200, "size": 2 * MiB + 11}, tmp_path)
    assert told["budget"] == LIMIT // 4
    assert told["after"] == told["before"]


def test_two_hundred_adds_and_gets_of_s3(ceph, tmp_path):
    told = run({"stores": [s3(ceph)], "count": 200, "size": 2 * MiB + 11}, tmp_path)
    assert told["after"]["threads"] <= told["before"]["threads"]


def test_two_hundred_adds_and_gets_of_rbd(ceph, tmp_path):
    told = run({"stores": [rbd(ceph)], "count": 200, "size": MiB + 11}, tmp_path, by_addresses=False)
    assert told["after"] == told["before"]


def test_a_tebibyte_of_holes(ceph, tmp_path):
    for store in (file(tmp_path / "images"), rbd(ceph)):
        run({"stores": [store], "sparse": TiB}, tmp_path, by_addresses=store["driver"] == "file")


def test_five_tebibytes_are_declared_and_given_up(ceph, tmp_path):
    # A part has 525 MiB then, for which memory is taken as they come; of a file they are not held.
    run({"stores": [s3(ceph)], "declared": 5 * TiB}, tmp_path, by_addresses=False)
    run({"stores": [s3(ceph)], "huge file": 5 * TiB}, tmp_path)


def test_one_image_goes_to_eight_stores(ceph, tmp_path):
    stores = [s3(ceph), rbd(ceph), *(file(tmp_path / f"images-{number}") for number in range(6))]
    run({"stores": stores, "spread": 40 * MiB}, tmp_path, by_addresses=False)
