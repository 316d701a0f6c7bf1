# SPDX-License-Identifier: Apache-2.0
"""The servers behind the stores of a Glance: files, S3, Swift and RBD, with Keystone before them."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
from servers.ceph import Cluster, RadosGateway
from servers.keystone import Keystone
from servers.swift import Swift

#: Bytes that Swift's options call a MB.
SEGMENT = 1000 * 1024
POOL, BUCKET, CONTAINER = "images", "images", "glance"
#: Where images are in the accounts of their owners.
OWN: dict[str, object] = {"swift_store_multi_tenant": True, "swift_store_use_trusts": False}


class Backends:
    """Ceph with S3 in front, and Swift behind Keystone; entered by ``stack``, all in ``directory``.

    The options of stores are those that glance_store knows, and are the same for storelib.
    """

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        def start(name: str, made: Any) -> Any:
            (directory / name).mkdir(exist_ok=True)
            return stack.enter_context(made(directory / name))

        with ThreadPoolExecutor(2) as pool:
            keystone, ceph = pool.submit(start, "keystone", Keystone), pool.submit(start, "ceph", Cluster)
            self.ceph: Cluster = ceph.result()
            self.keystone: Keystone = keystone.result()
        self.swift: Swift = start("swift", lambda path: Swift(path, self.keystone.url))
        self.gateway = stack.enter_context(RadosGateway(self.ceph))
        self.directory = directory
        self.ceph.add_pool(POOL)
        self.keystone.add_endpoints("object-store", RegionOne=f"{self.swift.url}/v1/AUTH_%(project_id)s")
        keys = {"aws_access_key_id": self.gateway.access_key, "aws_secret_access_key": self.gateway.secret_key}
        self.s3 = boto3.client("s3", endpoint_url=self.gateway.s3_endpoint, region_name="us-east-1", **keys)
        stack.callback(self.s3.close)
        self.s3.create_bucket(Bucket=BUCKET)

    def s3_options(self, **options: object) -> dict[str, object]:
        """The bucket; images from a MiB on are in parts of 5 MiB."""
        return {
            "s3_store_host": self.gateway.s3_endpoint,
            "s3_store_access_key": self.gateway.access_key,
            "s3_store_secret_key": self.gateway.secret_key,
            "s3_store_bucket": BUCKET,
            "s3_store_bucket_url_format": "path",
            "s3_store_region_name": "us-east-1",
            "s3_store_large_object_size": 1,
            "s3_store_large_object_chunk_size": 5,
            **options,
        }

    def swift_options(self, **options: object) -> dict[str, object]:
        """One account's; images from 2000 KiB on are in segments of ``SEGMENT``."""
        return {
            "swift_store_create_container_on_put": True,
            "swift_store_region": "RegionOne",
            "swift_store_large_object_size": 2,
            "swift_store_large_object_chunk_size": 1,
            "swift_store_container": CONTAINER,
            "swift_store_auth_address": self.keystone.url,
            "swift_store_user": "service:swift",
            "swift_store_key": "swiftpass",
            **options,
        }

    def rbd_options(self) -> dict[str, object]:
        """The pool; objects of a MiB."""
        return {
            "rbd_store_pool": POOL,
            "rbd_store_user": "admin",
            "rbd_store_ceph_conf": self.ceph.conf_file,
            "rbd_store_chunk_size": 1,
        }

    def accounts(self) -> dict[str, object]:
        """Options for what ``swift_options`` says, in a file."""
        path = self.directory / "swift-accounts.conf"
        path.write_text(
            f"[account]\nauth_address = {self.keystone.url}\nuser = 'service:swift'\nkey = \"swiftpass\"\n"
            "user_domain_id = default\nproject_domain_id = default\n"
        )
        return {"swift_store_config_file": path, "default_swift_reference": "account"}

    def user(self) -> dict[str, Any]:
        """Who asks, where images are in the accounts of their owners: what Keystone's middleware tells a service."""
        token, _ = self.keystone.token("demo", "demo")
        project = self.keystone.projects["demo"]
        url = f"{self.swift.url}/v1/AUTH_{project}"
        endpoint = {"region": "RegionOne", "publicURL": url, "internalURL": url, "adminURL": url}
        catalog = [{"type": "object-store", "name": "swift", "endpoints": [endpoint]}]
        names = {"project_id": project, "tenant": project, "user_id": self.keystone.users["demo"]}
        return {**names, "auth_token": token, "service_catalog": catalog, "roles": ["member"]}
