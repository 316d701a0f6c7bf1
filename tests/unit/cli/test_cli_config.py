# SPDX-License-Identifier: Apache-2.0
"""config sample and config migrate."""

from __future__ import annotations

import stat

import pytest

from storelib.config import Configuration, load_file, read_settings
from storelib.registry import Registry

SINGLE = """
[DEFAULT]
debug = true
[glance_store]
stores = glance.store.filesystem.Store, http
default_store = filesystem
filesystem_store_datadirs = /srv/a:10
filesystem_store_datadirs = /srv/b
filesystem_store_file_perm = 0
[database]
connection = mysql://glance:hunter2@db/glance
"""

SEVERAL = """
[DEFAULT]
enabled_backends = fast:file, web:http
[glance_store]
default_backend = fast
[backend_defaults]
filesystem_thin_provisioning = true
[fast]
filesystem_store_datadir = /srv/images
store_description = NVMe in rack 4
weight = 7
[os_glance_staging_store]
filesystem_store_datadir = /srv/staging
"""


@pytest.fixture
def migrate(storelib, places):
    """Migrates this text and answers what the command gave."""

    def call(text):
        (places / "glance-api.conf").write_text(text)
        return storelib("config", "migrate", "glance-api.conf", "-o", "new.ini")

    return call


def test_the_sample_can_be_used_as_it_is(storelib):
    assert storelib("config", "sample", "-o", "sample.ini").code == 0
    # Not a Registry, which would make the default directory of this machine.
    assert Configuration(load_file("sample.ini")).entries == [("file", "file", False), ("http", "http", False)]


def test_the_sample_has_the_options_of_the_image_api(storelib, places):
    from storelib.api import config, import_options

    storelib("config", "sample", "-o", "sample.ini")
    text = (places / "sample.ini").read_text()
    groups = {config.GROUP: config.OPTIONS, **import_options.GROUPS}
    for group, options in groups.items():
        section = text.partition(f"\n[{group}]\n")[2].partition("\n[")[0]
        assert [option.name for option in options if f"\n#{option.name} =" not in section] == []
    assert "\n[database]\n" in text


def test_the_sample_has_the_options_of_the_agent_on_a_node(storelib):
    from storelib.node.options import OPTIONS

    section = storelib("config", "sample").out.decode().partition("\n[node]\n")[2].partition("\n[")[0]
    assert [option.name for option in OPTIONS if f"\n#{option.name} =" not in section] == []


def test_a_directory_that_is_missing_is_named(storelib, places):
    response = storelib("config", "sample", "-o", "missing/sample.ini")
    assert response.err == f"storelib: {places.resolve() / 'missing'}: No such file or directory\n"


def test_the_sample_goes_to_stdout(storelib):
    assert b"#default_store = <None>" in storelib("config", "sample").out


def test_a_sample_does_not_replace_a_file(storelib, places):
    assert storelib("config", "sample", "-o", "storelib.ini").code == 4


def test_a_file_of_single_stores_is_migrated(migrate):
    assert migrate(SINGLE).code == 0
    found = Configuration(load_file("new.ini"))
    assert [entry.name for entry in found.entries] == ["file", "http"]
    assert found.default == "file"
    assert found.conf.storelib.filesystem_store_datadirs == ["/srv/a:10", "/srv/b"]


def test_an_empty_list_of_several_stores_is_none(migrate):
    assert migrate(f"[DEFAULT]\nenabled_backends =\n{SINGLE}").code == 0
    found = Configuration(load_file("new.ini"))
    assert [entry.name for entry in found.entries] == ["file", "http"]
    assert found.conf.storelib.filesystem_store_datadirs == ["/srv/a:10", "/srv/b"]


def test_a_file_of_several_stores_is_migrated(migrate, places):
    migrate(SEVERAL)
    text = (places / "new.ini").read_text()
    assert "stores = fast:file, web:http\ndefault_store = fast\nfilesystem_thin_provisioning = true\n" in text
    assert "[fast]\nfilesystem_store_datadir = /srv/images\ndescription = NVMe in rack 4\nweight = 7\n" in text


def test_groups_are_found_however_they_are_written(migrate, places):
    text = "[DEFAULT]\nenabled_backends = Fast:file\n[GLANCE_STORE]\ndefault_backend = Fast\n"
    response = migrate(f"{text}[fast]\nfilesystem_store_datadir = {places}/images\n")
    assert response.code == 0, response.err
    registry = Registry.from_file(places / "new.ini")
    assert (registry.default.name, registry.default.conf.filesystem_store_datadir) == ("Fast", f"{places}/images")


def test_a_store_that_is_listed_twice_is_one(migrate, places):
    text = "[glance_store]\nstores = filesystem, http, https, file\n"
    response = migrate(f"{text}filesystem_store_datadir = {places}/images\n")
    assert response.code == 0, response.err
    assert [store.name for store in Registry.from_file(places / "new.ini")] == ["file", "http"]


def test_the_groups_of_reserved_stores_are_kept(migrate, places):
    migrate(SEVERAL)
    assert "[os_glance_staging_store]\nfilesystem_store_datadir = /srv/staging\n" in (places / "new.ini").read_text()


@pytest.mark.parametrize("name", ["storelib", "api", "DATABASE"])
def test_a_store_whose_group_has_a_meaning_here_gets_another_name(migrate, places, name):
    datadir = f"filesystem_store_datadir = {places}"
    response = migrate(
        f"[DEFAULT]\nenabled_backends = {name}:file, {name}-store:file\n[glance_store]\ndefault_backend = {name}\n"
        f"[{name}]\n{datadir}/a\n[{name}-store]\n{datadir}/b\n"
    )
    found = Configuration(load_file("new.ini"))
    assert [entry.name for entry in found.entries] == [f"{name}-store-store", f"{name}-store"]
    assert found.default == f"{name}-store-store"
    assert f"[{name}-store-store]\n{datadir}/a\n" in (places / "new.ini").read_text()
    assert "look at 1 comments" in response.err


def test_an_old_default_that_changed_is_written_down(migrate, places):
    migrate("[glance_store]\nstores = file\n")
    assert "filesystem_store_datadir = /var/lib/glance/images" in (places / "new.ini").read_text()


def test_where_storelib_is_stricter_there_is_a_comment(migrate, places):
    migrate("[glance_store]\nstores = file, http\n")
    assert "\n[http]\n# migrate: glance_store verified no certificates" in (places / "new.ini").read_text()


def test_an_old_default_that_was_overridden_is_not(migrate, places):
    migrate(SINGLE)
    assert "/var/lib/glance/images" not in (places / "new.ini").read_text()


@pytest.mark.parametrize(
    "line", ["filesystem_store_gone = 1", "weight = heavy", "filesystem_store_datadir = $state_path/images"]
)
def test_what_cannot_be_migrated_stays_as_a_comment(migrate, places, line):
    response = migrate(
        f"[DEFAULT]\nenabled_backends = fast:file\n[glance_store]\ndefault_backend = fast\n[fast]\n{line}\n"
    )
    assert f"\n# {line}\n" in (places / "new.ini").read_text()
    assert "look at 1 comments" in response.err


def test_a_driver_that_is_not_there_is_left_out(migrate, places):
    migrate("[DEFAULT]\nenabled_backends = fast:file, tape:tape\n[glance_store]\ndefault_backend = fast\n")
    text = (places / "new.ini").read_text()
    assert "\nstores = fast:file\n" in text
    assert "\n# [tape]" in text
    assert "# migrate: store tape is left out: there is no driver tape here" in text


VMWARE = """
vmware_server_host = vc.example.org
vmware_server_username = glance
vmware_server_password = hunter2
vmware_datastores = dc1:ds1:5
vmware_datastores = Europe/dc2:ds2
vmware_store_image_dir = /images
vmware_api_insecure = true
vmware_task_poll_interval = 2
vmware_api_retry_count = 5
"""


@pytest.mark.parametrize(
    "text",
    [
        f"[DEFAULT]\nenabled_backends = vc:vmware\n[glance_store]\ndefault_backend = vc\n[vc]\n{VMWARE}",
        f"[glance_store]\nstores = vmware\ndefault_store = vsphere\n{VMWARE}",
        f"[glance_store]\nstores = glance.store.vmware_datastore.Store\ndefault_store = vsphere\n{VMWARE}",
    ],
)
def test_a_vmware_store_is_migrated(migrate, places, text):
    assert migrate(text).code == 0
    store = Registry.from_file("new.ini").default
    settings = store.datastores.settings
    assert settings.host == "vc.example.org"
    assert settings.directory == "images"
    assert [(each.datacenter, each.name, each.weight) for each in settings.targets] == [
        ("dc1", "ds1", 5),
        ("Europe/dc2", "ds2", 0),
    ]
    assert store.conf.vmware_insecure is True
    assert store.conf.vmware_task_poll_interval == 2.0
    assert "\n# vmware_api_retry_count = 5\n" in (places / "new.ini").read_text()


GLANCE = """
[DEFAULT]
bind_host = 0.0.0.0
user_storage_quota = 10GB
show_multiple_locations = true
enabled_import_methods = [web-download,copy-image]
enabled_backends = fast:file
transport_url = rabbit://u:p$$w@h:5672/
node_staging_uri = file:///var/lib/glance/staging%20area
image_cache_dir = /var/cache
[glance_store]
default_backend = fast
[fast]
filesystem_store_datadir = /srv/images
[database]
connection = mysql+pymysql://glance:hunter2@db/glance
max_retries = -1
[keystone_authtoken]
www_authenticate_uri = http://keystone:5000
password = secret
[paste_deploy]
flavor = keystone+cachemanagement
[oslo_policy]
policy_file = policy.yaml
[image_format]
disk_formats = [raw,qcow2]
vmdk_allowed_types = streamOptimized
[import_filtering_opts]
allowed_ports = [80,443,8080]
[oslo_messaging_notifications]
driver = messagingv2
[oslo_messaging_rabbit]
ssl = true
[cors]
allowed_origin = *
"""


def migrated(places):
    """What the new file sets, by group and name, and its comments."""
    lines = (places / "new.ini").read_text().splitlines()
    return {(each.group, each.key): each.value for each in read_settings("new.ini")}, [x for x in lines if x[:1] == "#"]


def test_what_the_image_api_has_a_counterpart_for_is_carried(migrate, places):
    assert migrate(GLANCE).code == 0
    found, _ = migrated(places)
    assert {key: value for (group, key), value in found.items() if group == "api"} == {
        "auth_strategy": "keystone",
        "notifications": "true",
        "staging_dir": "/var/lib/glance/staging area",
        "user_storage_quota": "10GB",
        "show_multiple_locations": "true",
        "enabled_import_methods": "web-download,copy-image",
        "disk_formats": "raw,qcow2",
        "import_allowed_ports": "80,443,8080",
        "image_cache_dir": "/var/cache",
    }
    assert found["database", "connection"] == "mysql+pymysql://glance:hunter2@db/glance"
    assert found["keystone_authtoken", "password"] == "secret"
    assert found["oslo_policy", "policy_file"] == "policy.yaml"
    assert found["DEFAULT", "transport_url"] == "rabbit://u:p$$w@h:5672/"
    assert found["oslo_messaging_rabbit", "ssl"] == "true"


def test_what_is_staged_stays_where_it_was(migrate, places):
    """Among several stores one of Glance's own has it, whatever node_staging_uri says."""
    connected = "[database]\nconnection = sqlite://\n"
    several = SEVERAL.partition("[os_glance_staging_store]")[0] + connected
    for text, staged in (
        (SEVERAL, "/srv/staging"),
        (GLANCE + "[os_glance_staging_store]\nfilesystem_store_datadir = /srv/staging\n", "/srv/staging"),
        (several, "/var/lib/glance/os_glance_staging_store"),
        (SINGLE, None),
    ):
        (places / "new.ini").unlink(missing_ok=True)
        migrate(text)
        found, comments = migrated(places)
        assert (found.get(("api", "staging_dir")), "# staging_dir = /tmp/staging" in comments) == (staged, not staged)


def test_policies_beside_the_old_file_are_named_in_the_new_one(migrate, places):
    """Nobody is told of a policy file that is not found; without it the defaults hold."""
    (places / "policy.yaml").write_text("get_images: role:auditor\n")
    (places / "policy.d").mkdir()
    for text in (SINGLE, SINGLE + "[oslo_policy]\npolicy_file = policy.yaml\npolicy_dirs = policy.d\n"):
        (places / "new.ini").unlink(missing_ok=True)
        migrate(text)
        found, _ = migrated(places)
        read = [found["oslo_policy", key] for key in ("policy_file", "policy_dirs")]
        assert read == [str(places.absolute() / name) for name in ("policy.yaml", "policy.d")]


@pytest.mark.parametrize("option", ["enforce_new_defaults", "enforce_scope"])
def test_policies_of_before_the_present_roles_are_not_promised(migrate, places, option):
    for value, carried in (("False", False), ("true", True)):
        (places / "new.ini").unlink(missing_ok=True)
        migrate(SINGLE + f"[oslo_policy]\n{option} = {value}\n")
        found, comments = migrated(places)
        assert (("oslo_policy", option) in found, f"# {option} = {value}" in comments) == (carried, not carried)


def test_files_beside_the_old_one_are_found_from_the_new_one(migrate, places):
    """Glance looks for them there."""
    (places / "schema-image.json").write_text('{"shelf": {"type": "integer"}}')
    for name in ("protections.conf", "mounts.json"):
        (places / name).touch()
    beside = "[DEFAULT]\nproperty_protection_file = protections.conf\nimage_cache_dir = cache\n"
    stores = "[glance_store]\nfilesystem_store_metadata_file = mounts.json\n[paste_deploy]\nflavor = keystone+caching\n"
    migrate(SINGLE + beside + stores)
    found, _ = migrated(places)
    assert found["api", "property_protection_file"] == str(places.absolute() / "protections.conf")
    assert found["api", "property_schema_file"] == str(places.absolute() / "schema-image.json")
    assert found["storelib", "filesystem_store_metadata_file"] == str(places.absolute() / "mounts.json")
    assert found["api", "image_cache_dir"] == "cache"


def test_what_glance_does_without_being_told_is_said(migrate, places):
    migrate(SINGLE)
    found, comments = migrated(places)
    assert found["healthcheck", "backends"] == "disable_by_file"
    assert found["healthcheck", "disable_by_file_path"] == "/etc/glance/healthcheck_disable"
    assert any("import_allowed_networks" in line for line in comments)


def test_every_option_that_is_set_is_in_the_new_file(migrate, places):
    migrate(GLANCE)
    found, comments = migrated(places)
    carried = {key for _, key in found} | {line[2:].partition(" = ")[0] for line in comments if " = " in line}
    used = {"enabled_backends", "default_backend", "flavor", "node_staging_uri", "allowed_ports"}
    assert {each.key for each in read_settings("glance-api.conf")} - carried <= used
    assert found["cors", "allowed_origin"] == "*"
    for key in ("bind_host", "max_retries", "vmdk_allowed_types"):
        at = next(number for number, line in enumerate(comments) if line.startswith(f"# {key} = "))
        assert comments[at - 1].startswith("# migrate: ")


def test_a_migrated_file_is_one_that_the_service_takes(migrate, places):
    from storelib.api import config

    migrate(GLANCE)
    conf = load_file("new.ini")
    config.register_opts(conf)
    options = config.read_options(conf)
    assert (options.auth_strategy, options.import_allowed_ports) == ("keystone", [80, 443, 8080])


@pytest.mark.parametrize(
    ("text", "strategy"),
    [
        ("[paste_deploy]\nflavor = keystone", "keystone"),
        ("[paste_deploy]\nflavor = keystone+caching", "keystone"),
        ("[paste_deploy]\nflavor = trusted-auth", "keystone"),
        ("[paste_deploy]\nflavor = ours", "keystone"),
        ("[paste_deploy]\nflavor =\n[keystone_authtoken]\nusername = glance", "keystone"),
        ("[keystone_authtoken]\nusername = glance", "keystone"),
        ("[paste_deploy]\nflavor = caching", "noauth"),
        ("[DEFAULT]\nuser_storage_quota = 1GB", None),
    ],
)
def test_who_had_keystone_keeps_it(migrate, places, text, strategy):
    assert migrate(f"[glance_store]\nstores = file\n{text}\n").code == 0
    assert migrated(places)[0].get(("api", "auth_strategy")) == strategy


CACHE = """
[DEFAULT]
image_cache_dir = /var/cache
image_cache_max_size = 5000
image_cache_stall_time = 60
cache_prefetcher_interval = 7
image_cache_driver = sqlite
[glance_store]
stores = file
"""


@pytest.mark.parametrize(
    ("flavor", "carried"),
    [
        ("keystone+cachemanagement", {"image_cache_dir": "/var/cache"}),
        ("keystone+caching", {"image_cache_dir": "/var/cache", "image_cache_management": "false"}),
        ("keystone", {}),
    ],
)
def test_who_had_a_cache_keeps_it(migrate, places, flavor, carried):
    assert migrate(f"{CACHE}[paste_deploy]\nflavor = {flavor}\n").code == 0
    found, comments = migrated(places)
    limits = {"image_cache_max_size": "5000", "image_cache_stall_time": "60", "cache_prefetcher_interval": "7"}
    assert {key: value for (_, key), value in found.items() if "cache" in key} == limits | carried
    assert "# image_cache_driver = sqlite" in comments
    assert ("# image_cache_dir = /var/cache" in comments) is (not carried)


def test_messages_stay_off_where_glance_sent_none(migrate, places):
    migrate("[DEFAULT]\ntransport_url = rabbit://\n[glance_store]\nstores = file\n")
    found, comments = migrated(places)
    assert ("api", "notifications") not in found
    assert "# transport_url = rabbit://" in comments


def test_no_value_is_printed_when_there_is_a_file(migrate):
    response = migrate("[glance_store]\nstores = file\nswift_store_key = hunter2\n")
    assert response.out == b""
    assert "hunter2" not in response.err


def test_only_its_owner_may_read_a_migrated_file(migrate, places):
    migrate(SINGLE)
    assert stat.S_IMODE((places / "new.ini").stat().st_mode) == 0o600


def test_several_files_are_migrated_together(storelib, places):
    """Glance has the options of imports in a file of their own."""
    (places / "glance-api.conf").write_text(f"{SINGLE}\n[image_format]\ndisk_formats = raw\n")
    (places / "glance-image-import.conf").write_text(
        "[import_filtering_opts]\nallowed_hosts = [a.example]\n[image_format]\ndisk_formats = qcow2\n"
        "[image_import_opts]\nimage_import_plugins = ['no_op']\n"
    )
    old = ("glance-api.conf", "glance-image-import.conf")
    assert storelib("config", "migrate", *old, "-o", "new.ini").code == 0
    conf = load_file("new.ini")
    from storelib.api import config

    config.register_opts(conf)
    options = config.read_options(conf)
    assert options.import_allowed_hosts == ["a.example"]
    assert options.disk_formats == ["qcow2"]
    assert options.image_import_opts.image_import_plugins == ["no_op"]
    assert (places / "new.ini").read_text().startswith("# Made from glance-api.conf, glance-image-import.conf by")


def test_a_file_without_old_groups_is_code_2(migrate):
    response = migrate("[database]\nconnection = sqlite://\n")
    assert (response.code, "nothing to migrate" in response.err) == (2, True)


def test_a_file_that_is_ours_already_is_code_2(migrate):
    assert migrate("[storelib]\nstores = file\n[glance_store]\n").code == 2


@pytest.mark.parametrize(
    ("written", "value"), [("' blanks '", " blanks "), ("'\"quoted\"'", '"quoted"'), ("two\n  lines", "two\nlines")]
)
def test_values_survive_as_the_parser_reads_them(migrate, written, value):
    migrate(SEVERAL.replace("NVMe in rack 4", written))
    assert [item.value for item in read_settings("new.ini") if item.key == "description"] == [value]


def test_a_cinder_store_is_migrated(migrate, places):
    text = """
[DEFAULT]
enabled_backends = block:cinder
[glance_store]
default_backend = block
[block]
cinder_store_auth_address = https://keystone:5000/v3
cinder_store_user_name = images
cinder_store_password = hunter2
cinder_store_project_name = service
cinder_volume_type = fast
rootwrap_config = /etc/glance/rootwrap.conf
cinder_do_extend_attached = true
"""
    assert migrate(text).code == 0
    found = Configuration(load_file("new.ini"))
    assert [(entry.name, entry.driver) for entry in found.entries] == [("block", "cinder")]
    new = (places / "new.ini").read_text()
    assert "cinder_store_password = hunter2\n" in new
    assert "cinder_volume_type = fast\n" in new
    assert "rootwrap_config = /etc/glance/rootwrap.conf\n" in new
    assert "cinder_do_extend_attached = true\n" in new
    assert any("cinder_rbd_keyring" in line for line in new.splitlines() if line.startswith("# "))
