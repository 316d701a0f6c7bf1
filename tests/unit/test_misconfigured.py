# SPDX-License-Identifier: Apache-2.0
"""An option that cannot be is told in one form by every driver, with the name of the store."""

from __future__ import annotations

import pytest

from storelib.exceptions import BadStoreConfiguration, misconfigured
from storelib.registry import open_store

MONGO = {"mongodb_store_uri": "127.0.0.1"}
S3 = {"s3_store_bucket": "images", "s3_store_host": "127.0.0.1"}


@pytest.mark.parametrize(
    ("driver", "option", "options"),
    [
        ("cinder", "cinder_catalog_info", {"cinder_catalog_info": "volumev3"}),
        ("cinder", "cinder_store_auth_address", {"cinder_store_user_name": "images"}),
        ("file", "filesystem_store_datadirs", {"filesystem_store_datadirs": ["/nowhere", "/nowhere"]}),
        ("gridfs", "mongodb_store_uri", {}),
        ("gridfs", "mongodb_store_db", {**MONGO, "mongodb_store_db": "a b"}),
        (
            "gridfs",
            "mongodb_store_chunk_size",
            {**MONGO, "mongodb_store_db": "images", "mongodb_store_chunk_size": 5},
        ),
        ("http", "http_allowed_networks", {"http_allowed_networks": ["10.0.0.0/33"]}),
        ("http", "http_proxy_information", {"http_proxy_information": {"ftp": "proxy:3128"}}),
        ("http", "https_ca_certificates_file", {"https_ca_certificates_file": "/nowhere/ca.pem"}),
        ("s3", "s3_store_secret_key", {**S3, "s3_store_access_key": "key"}),
        ("s3", "s3_store_proxy", {**S3, "s3_store_proxy": "http://[::1/"}),
        ("s3", "s3_store_proxy", {**S3, "s3_store_proxy": "http://proxy:99999/"}),
        ("s3", "s3_store_host", {**S3, "s3_store_host": "ftp://host"}),
        ("s3", "s3_store_kms_key_id", {**S3, "s3_store_kms_key_id": "key"}),
        ("sheepdog", "sheepdog_store_command", {"sheepdog_store_command": "no-such-program"}),
        ("swift", "swift_store_auth_address", {}),
        ("swift", "swift_store_config_file", {"swift_store_config_file": "/nowhere/swift.conf"}),
    ],
)
def test_an_option_that_cannot_be_is_told_with_its_store(driver, option, options):
    try:
        store = open_store(driver, "one", **options)
    except BadStoreConfiguration as error:
        told = str(error)
    else:
        # Only adding is misconfigured.
        told = store.add_disabled
    assert told.startswith(f"store one, option {option}"), told


VCENTER = {
    "vmware_server_host": "vcenter",
    "vmware_server_username": "images",
    "vmware_server_password": "secret",
    "vmware_datastores": ["dc:ds"],
}
SWIFT = {
    "swift_store_auth_address": "https://keystone:5000/v3",
    "swift_store_user": "images:glance",
    "swift_store_key": "secret",
}


@pytest.mark.parametrize(
    ("driver", "option", "options"),
    [
        ("cinder", "cinder_ca_certificates_file", {}),
        ("gridfs", "mongodb_store_tls_ca_file", {**MONGO, "mongodb_store_db": "images", "mongodb_store_tls": True}),
        ("http", "https_ca_certificates_file", {}),
        ("s3", "s3_store_cacert", S3),
        ("swift", "swift_store_cacert", SWIFT),
        ("vmware", "vmware_ca_file", VCENTER),
    ],
)
@pytest.mark.parametrize("content", ["", "no certificate"])
def test_a_file_without_certificates_is_told_before_anything_is_sent(driver, option, options, content, tmp_path):
    file = tmp_path / "ca.pem"
    file.write_text(content)
    with pytest.raises(BadStoreConfiguration, match=f"store one, option {option}: no certificates can be read from"):
        open_store(driver, "one", **options, **{option: str(file)})


def test_the_store_words_the_error_by_its_own_name():
    store = open_store("memory", "cold")
    error = store.misconfigured("memory_store_part_size", "a multiple of 4096")
    assert isinstance(error, BadStoreConfiguration)
    assert str(error) == str(misconfigured("cold", "memory_store_part_size", "a multiple of 4096"))
    assert str(error) == "store cold, option memory_store_part_size: a multiple of 4096"
