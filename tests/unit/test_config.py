# SPDX-License-Identifier: Apache-2.0
"""How options are found, and what a mistake in a configuration file is answered with."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from oslo_config import cfg, generator

from storelib.config import Configuration, list_opts, load_file, register_opts
from storelib.exceptions import BadStoreConfiguration
from storelib.option_types import Names
from storelib.plugins import driver_classes
from storelib.registry import Registry, open_store


def load_file_of(tmp_path: Path, text: str) -> cfg.ConfigOpts:
    """An ini file with this text, read."""
    path = tmp_path / "storelib.ini"
    path.write_text(text, encoding="utf-8")
    return load_file(path)


def registry(tmp_path: Path, text: str) -> Registry:
    """The registry of an ini file with this text."""
    return Registry.from_conf(load_file_of(tmp_path, text))


def complaint(tmp_path: Path, text: str) -> str:
    """What is said about a file with this text, without the directory."""
    with pytest.raises(BadStoreConfiguration) as caught:
        registry(tmp_path, text)
    return str(caught.value).replace(f"{tmp_path}/", "")


# -- Look-up ----------------------------------------------------------------------------------------------------------


def test_the_stores_own_group_goes_before_the_shared_one(tmp_path):
    stores = registry(
        tmp_path,
        """
[storelib]
stores = fast:memory, slow:memory
memory_store_concurrency = 3
[fast]
memory_store_concurrency = 7
""",
    )
    assert stores["fast"].conf.memory_store_concurrency == 7
    assert stores["slow"].conf.memory_store_concurrency == 3


def test_an_option_set_nowhere_has_its_default(tmp_path):
    store = registry(tmp_path, "[storelib]\nstores = memory\n")["memory"]
    assert store.conf.transfer_timeout == 300.0


def test_a_value_equal_to_the_default_in_the_own_group_still_goes_before(tmp_path):
    stores = registry(
        tmp_path, "[storelib]\nstores = fast:memory\ntransfer_retries = 9\n[fast]\ntransfer_retries = 4\n"
    )
    assert stores["fast"].conf.transfer_retries == 4


def test_a_deprecated_name_is_read(tmp_path):
    stores = registry(tmp_path, "[storelib]\nstores = memory\n[memory]\nstore_description = old disks\n")
    assert stores["memory"].conf.description == "old disks"


def test_a_value_set_by_the_program_later_is_seen(tmp_path):
    stores = registry(tmp_path, "[storelib]\nstores = fast:memory\n")
    stores.conf.set_override("memory_store_concurrency", 5, group="storelib")
    assert stores["fast"].conf.memory_store_concurrency == 5


def test_an_environment_variable_goes_before_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OS_FAST__WEIGHT", "12")
    assert registry(tmp_path, "[storelib]\nstores = fast:memory\n[fast]\nweight = 1\n")["fast"].conf.weight == 12


def test_two_configurations_do_not_see_each_other(tmp_path):
    (tmp_path / "other").mkdir()
    one = registry(tmp_path, "[storelib]\nstores = fast:memory\ntransfer_retries = 1\n")
    other = registry(tmp_path / "other", "[storelib]\nstores = fast:memory\n")
    assert (one["fast"].conf.transfer_retries, other["fast"].conf.transfer_retries) == (1, 4)


def test_the_raw_configuration_keeps_its_own_defaults(tmp_path):
    stores = registry(tmp_path, "[storelib]\nstores = fast:memory\ntransfer_retries = 1\n")
    assert stores.conf["fast"].transfer_retries == 4


def test_an_unknown_option_is_an_attribute_error(tmp_path):
    with pytest.raises(AttributeError, match="no option 'memory_size'"):
        _ = registry(tmp_path, "[storelib]\nstores = memory\n")["memory"].conf.memory_size


def test_a_group_name_in_other_case_is_the_same_group(tmp_path):
    assert registry(tmp_path, "[storelib]\nstores = fast:memory\n[FAST]\nweight = 2\n")["fast"].conf.weight == 2


# -- Mistakes ---------------------------------------------------------------------------------------------------------


def test_a_value_of_the_wrong_type_is_named_with_file_line_group_and_what_is_allowed(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = fast:memory\n[fast]\nweight = heavy\n")
    assert said.startswith("[fast] weight = heavy (storelib.ini, line 4) is not valid: expected a whole number")


def test_a_value_out_of_range_is_named_with_the_range(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = fast:memory\ntransfer_retries = 101\n")
    assert "[storelib] transfer_retries = 101 (storelib.ini, line 3) is not valid" in said
    assert "a whole number, at least 0, at most 100" in said


def test_a_bad_value_from_the_environment_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("OS_FAST__WEIGHT", "heavy")
    said = complaint(tmp_path, "[storelib]\nstores = fast:memory\n[fast]\nweight = 1\n")
    assert said.startswith("[fast] weight = heavy (environment: OS_FAST__WEIGHT) is not valid: ")


def test_an_unknown_driver_is_an_error_with_the_closest_name(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = fast:memroy\n")
    assert said == (
        "[storelib] stores = fast:memroy (storelib.ini, line 2): "
        "there is no driver 'memroy' for store fast; did you mean memory?"
    )


def test_a_default_store_that_is_not_listed_is_an_error(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = fast:memory\ndefault_store = fsat\n")
    assert (
        said == "[storelib] default_store = fsat (storelib.ini, line 3): 'stores' does not list it; did you mean fast?"
    )


@pytest.mark.parametrize("ids", ["fast, fast", "fast, Fast"])
def test_a_store_listed_twice_is_an_error(tmp_path, ids):
    one, other = (f"{name.strip()}:memory" for name in ids.split(","))
    assert "are the same store id" in complaint(tmp_path, f"[storelib]\nstores = {one},{other}\n")


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "ä", "a" * 65, "-a"])
def test_a_name_that_cannot_be_an_id_is_an_error(tmp_path, name):
    assert f"{name!r} is not a store id" in complaint(tmp_path, f"[storelib]\nstores = {name}:memory\n")


@pytest.mark.parametrize("name", ["storelib", "DEFAULT", "config_file"])
def test_a_name_with_a_meaning_of_its_own_is_an_error(tmp_path, name):
    assert "has a meaning already" in complaint(tmp_path, f"[storelib]\nstores = {name}:memory\n")


def test_an_id_kept_for_internal_stores_is_an_error(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = os_glance_staging_store:memory\n")
    assert "ids that start with os_glance_ are for internal stores" in said


def test_no_stores_at_all_is_an_error(tmp_path):
    assert "list at least one store" in complaint(tmp_path, "[storelib]\nstores =\n")


def test_a_misspelled_option_is_an_error_with_the_closest_name(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = fast:memory\n[fast]\nmemory_store_partsize = 4096\n")
    assert said == (
        "[fast] memory_store_partsize (storelib.ini, line 4): "
        "there is no such option; did you mean memory_store_part_size?"
    )


def test_a_misspelled_option_is_named_without_its_value(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = fast:memory\n[fast]\nsecret_kee = hunter2\n")
    assert "hunter2" not in said


def test_a_misspelled_shared_option_is_an_error(tmp_path):
    assert "did you mean default_store?" in complaint(tmp_path, "[storelib]\nstores = memory\ndefault_stor = memory\n")


def test_a_value_set_by_the_program_is_told_apart_from_the_files(tmp_path):
    conf = registry(tmp_path, "[storelib]\nstores = memory\ndefault_store = memory\n").conf
    conf.set_override("default_store", "nowhere", group="storelib")
    with pytest.raises(BadStoreConfiguration, match=r"\[storelib\] default_store = nowhere \(set by the program\)"):
        Registry.from_conf(conf)


def test_a_credential_in_a_bad_value_is_not_shown(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = memory\n[memory]\nweight = https://user:hunter2@proxy:1\n")
    assert "hunter2" not in said


def test_files_of_a_configuration_directory_are_looked_at(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "stores.conf").write_text("[storelib]\nstores = memory\n[memory]\nwieght = 1\n")
    conf = cfg.ConfigOpts()
    conf(["--config-dir", str(tmp_path / "parts")], project="test", default_config_files=[])
    with pytest.raises(BadStoreConfiguration, match="stores.conf, line 4.*did you mean weight"):
        Registry.from_conf(conf)


def test_files_that_can_no_longer_be_read_do_not_matter(tmp_path, caplog):
    conf = load_file_of(tmp_path, "[storelib]\nstores = memory\n")
    (tmp_path / "storelib.ini").unlink()
    assert [store.name for store in Registry.from_conf(conf)] == ["memory"]
    assert "misspelled options are not noticed" in caplog.text


def test_an_option_the_program_registered_in_the_shared_group_is_fine(tmp_path):
    path = tmp_path / "storelib.ini"
    path.write_text("[storelib]\nstores = memory\nof_the_program = 1\n")
    conf = cfg.ConfigOpts()
    conf.register_opt(cfg.IntOpt("of_the_program"), group="storelib")
    conf(["--config-file", str(path)], project="test", default_config_dirs=[])
    assert len(Registry.from_conf(conf)) == 1


def test_a_group_that_looks_like_a_store_but_is_not_listed_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        registry(tmp_path, "[storelib]\nstores = fast:memory\n[fsat]\nmemory_store_part_size = 4096\n")
    assert (
        "group [fsat] has options of a store, but [storelib] stores does not list it; did you mean fast?" in caplog.text
    )


@pytest.mark.parametrize(
    ("text", "group", "meant"),
    [
        ("[storelib]\nstores = archive:memory\n[archvie]\nread_only = true\n", "archvie", "archive"),
        ("[storlib]\nstores = memory\n", "storlib", "storelib"),
    ],
)
def test_a_misspelled_group_is_warned_of_whatever_it_sets(tmp_path, caplog, text, group, meant):
    with caplog.at_level(logging.WARNING):
        (tmp_path / "storelib.ini").write_text(text)
        Configuration(load_file(tmp_path / "storelib.ini")).check_names({})
    assert f"group [{group}] has options of a store" in caplog.text
    assert f"did you mean {meant}?" in caplog.text


def test_an_option_that_is_set_twice_is_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        registry(tmp_path, "[storelib]\nstores = fast:memory\n[fast]\nweight = 1\n[FAST]\nweight = 2\n")
    assert "storelib.ini, line 6): line 4 sets it, too, and of both the later one counts" in caplog.text


def test_an_option_that_may_be_repeated_is_not_warned_of(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        directories = "".join(f"filesystem_store_datadirs = {tmp_path / name}\n" for name in ("a", "b"))
        registry(tmp_path, f"[storelib]\nstores = fast:file\n[fast]\n{directories}")
    assert "sets it, too" not in caplog.text


def test_groups_of_other_programs_are_left_alone(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        registry(tmp_path, "[storelib]\nstores = memory\n[database]\nconnection = sqlite://\n")
    assert "database" not in caplog.text


def test_a_group_of_glance_store_points_to_migrate(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        registry(tmp_path, "[storelib]\nstores = memory\n[glance_store]\nmemory_store_part_size = 4096\n")
    assert "storelib config migrate" in caplog.text


def test_a_file_that_does_not_exist_is_named():
    with pytest.raises(BadStoreConfiguration, match="cannot read configuration file /nowhere/x.ini: No such file"):
        load_file("/nowhere/x.ini")


def test_a_directory_is_not_a_file(tmp_path):
    with pytest.raises(BadStoreConfiguration, match="Is a directory"):
        load_file(tmp_path)


def test_a_malformed_line_is_named_by_number_and_not_quoted(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = memory\npassword hunter2\n")
    assert said == "storelib.ini, line 3: No ':' or '=' found in assignment"


def test_an_assignment_before_the_first_group_is_an_error(tmp_path):
    assert "storelib.ini, line 1: " in complaint(tmp_path, "stores = memory\n[storelib]\n")


def test_a_binary_file_is_an_error(tmp_path):
    (tmp_path / "disk.qcow2").write_bytes(b"QFI\xfb\x00\x00")
    with pytest.raises(BadStoreConfiguration, match="not text in UTF-8"):
        load_file(tmp_path / "disk.qcow2")


def test_a_byte_order_mark_is_named(tmp_path):
    (tmp_path / "storelib.ini").write_text("[storelib]\nstores = memory\n", encoding="utf-8-sig")
    with pytest.raises(BadStoreConfiguration, match=r"storelib\.ini begins with a byte order mark"):
        load_file(tmp_path / "storelib.ini")


def test_a_reference_to_an_option_that_does_not_exist_is_an_error(tmp_path):
    assert "[memory] description" in complaint(
        tmp_path, "[storelib]\nstores=memory\n[memory]\ndescription = $nothing\n"
    )


# -- Sample -----------------------------------------------------------------------------------------------------------


def test_the_sample_has_every_option_of_every_driver():
    [(group, options)] = list_opts()
    listed = {option.dest for option in options}
    drivers = {option.dest for driver in driver_classes().values() for option in driver.options}
    assert group.name == "storelib"
    assert {"stores", "default_store", "weight", "read_only"} | drivers <= listed


def test_the_generator_writes_a_sample_that_can_be_read_back(tmp_path):
    sample = tmp_path / "sample.ini"
    generator.main(["--namespace", "storelib", "--output-file", str(sample)])
    sample.write_text(sample.read_text().replace("#stores = file,http", "stores = memory"))
    assert [store.name for store in Registry.from_file(sample)] == ["memory"]


def test_registering_twice_is_harmless():
    conf = cfg.ConfigOpts()
    register_opts(conf)
    register_opts(conf)
    assert conf.storelib.stores == ["file", "http"]


# -- What is no value, and whose directory a path is of --------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "stores = s0:$storelib.stores",
        "stores = a:file\n[a]\nfilesystem_store_datadir = $filesystem_store_datadir",
        "stores = a:file\n[a]\nfilesystem_store_datadir = /srv/$hidden/images",
        "stores = a:file\n[a]\nweight = 1$hidden",
        "stores = a:swift\n[a]\nswift_store_key = pass$hidden",
        "stores = a:swift\n[a]\nswift_store_key = pass${hidden}word",
    ],
)
def test_a_dollar_sign_gets_the_hint_to_double_it_and_hides_what_follows(tmp_path, text):
    said = complaint(tmp_path, f"[storelib]\n{text}\n")
    assert "'$$'" in said
    assert "hidden" not in said
    assert "line " in said


def test_a_password_that_names_an_option_is_pointed_out(tmp_path, caplog):
    registry(tmp_path, "[storelib]\nstores = a:swift\n[a]\nswift_store_key = pa$weight\nswift_store_user = u:v\n")
    assert "swift_store_key = *** " in caplog.text
    assert "'$$'" in caplog.text
    assert "pa0" not in caplog.text


def test_a_doubled_dollar_sign_is_one(tmp_path):
    directory = tmp_path / "a$b"
    store = registry(tmp_path, f"[storelib]\nstores = file\nfilesystem_store_datadir = {tmp_path}/a$$b\n")["file"]
    assert store.conf.filesystem_store_datadir == str(directory)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN", ""])
def test_what_is_no_number_is_none(tmp_path, value):
    said = complaint(tmp_path, f"[storelib]\nstores = file\ntransfer_timeout = {value}\n")
    assert "expected a number" in said


@pytest.mark.parametrize("value", [float("nan"), "inf", ""])
def test_what_is_no_number_is_none_without_a_file_either(tmp_path, value):
    with pytest.raises(BadStoreConfiguration, match="transfer_timeout"):
        open_store("file", filesystem_store_datadir=tmp_path, transfer_timeout=value)


@pytest.mark.parametrize(
    ("driver", "option"),
    [
        ("file", "filesystem_store_datadir"),
        ("file", "filesystem_store_datadirs"),
        ("rbd", "rbd_store_ceph_conf"),
        ("rbd", "rbd_store_pool"),
        ("s3", "s3_store_cacert"),
        ("gridfs", "gridfs_store_uri"),
    ],
)
@pytest.mark.parametrize("text", ["/a\0b", "/a\ud800b"])
def test_what_is_no_text_is_refused_with_the_option(driver, option, text):
    """It can be in no URI, no path and no name on a server."""
    with pytest.raises(BadStoreConfiguration, match=option) as caught:
        open_store(driver, **{option: text})
    assert str(caught.value).encode()


def test_a_null_character_in_a_file_is_refused_with_the_option(tmp_path):
    said = complaint(tmp_path, "[storelib]\nstores = rbd\nrbd_store_pool = a\0b\n")
    assert "rbd_store_pool" in said
    assert "null character" in said


def test_a_number_without_a_default_may_be_left_empty():
    options = {"swift_store_auth_address": "https://keystone:5000", "swift_store_user": "a:b", "swift_store_key": "c"}
    assert open_store("swift", **options, swift_store_delete_after="").conf.swift_store_delete_after is None


@pytest.mark.parametrize("option", ["transfer_timeout", "filesystem_store_timeout"])
def test_more_seconds_than_python_can_wait_for_are_refused(tmp_path, option):
    with pytest.raises(BadStoreConfiguration, match=option):
        open_store("file", **{"filesystem_store_datadir": tmp_path, option: 1e10})
    store = open_store("file", **{"filesystem_store_datadir": tmp_path, option: 1e9})
    assert store.add("x", [b"1", b"2" * 2**20]).size == 1 + 2**20


def test_a_relative_directory_is_in_that_of_the_file(tmp_path, monkeypatch):
    (tmp_path / "etc").mkdir()
    path = tmp_path / "etc/storelib.ini"
    path.write_text(
        "[storelib]\nstores = a:file, b:file\n[a]\nfilesystem_store_datadir = images\n"
        "[b]\nfilesystem_store_datadirs = one:1\nfilesystem_store_datadirs = ../two\n"
    )
    monkeypatch.chdir(tmp_path)
    stores = Registry.from_file("etc/storelib.ini")
    assert stores["a"].conf.filesystem_store_datadir == str(tmp_path / "etc/images")
    assert stores["b"].conf.filesystem_store_datadirs == [str(tmp_path / "etc/one:1"), str(tmp_path / "etc/../two")]


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        (["--config-file", "a/my.ini", "--config-dir", "b"], "b/images"),
        (["--config-dir", "b", "--config-file", "a/my.ini"], "a/images"),
        (["--config-dir=b", "--config-file=a/my.ini"], "a/images"),
        # What is there by default is read before what the command line names.
        (["--config-file", "a/my.ini"], "a/images"),
        (["--config-dir", "b"], "b/images"),
        ([], "b/images"),
    ],
)
def test_a_relative_directory_is_in_that_of_the_file_that_counts(tmp_path, monkeypatch, arguments, counts):
    for place in ("a/my.ini", "b/more.conf"):
        (tmp_path / place).parent.mkdir()
        text = "[storelib]\nstores = file\nfilesystem_store_datadir = images\n"
        (tmp_path / place).write_text(text)
    monkeypatch.chdir(tmp_path)
    conf = cfg.ConfigOpts()
    conf(arguments, project="test", default_config_files=["a/my.ini"], default_config_dirs=["b"])
    assert Registry.from_conf(conf)["file"].conf.filesystem_store_datadir == str(tmp_path / counts)


def test_relative_directories_of_several_files_are_each_in_its_own(tmp_path):
    for place, text in (("a/my.ini", "[storelib]\nstores = file\n"), ("b/more.conf", "[storelib]\n")):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_text(f"{text}filesystem_store_datadirs = images:1\n")
    conf = cfg.ConfigOpts()
    files, directories = [str(tmp_path / "a/my.ini")], [str(tmp_path / "b")]
    conf([], project="test", default_config_files=files, default_config_dirs=directories)
    found = Registry.from_conf(conf)["file"].conf.filesystem_store_datadirs
    assert found == [str(tmp_path / "a/images:1"), str(tmp_path / "b/images:1")]


def test_a_relative_directory_without_a_file_is_in_the_current_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = open_store("file", filesystem_store_datadir="images")
    monkeypatch.chdir("/")
    image = store.add("id", b"data")
    assert (tmp_path / "images/id").read_bytes() == b"data"
    store.delete(image.uri)


def test_a_directory_of_a_home_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    store = registry(tmp_path, "[storelib]\nstores = file\nfilesystem_store_datadir = ~/images\n")["file"]
    store.add("id", b"data")
    assert (tmp_path / "home/images/id").read_bytes() == b"data"


def test_an_absolute_directory_needs_no_current_one(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    store = open_store("file", filesystem_store_datadir=str(tmp_path / "images"))
    assert store.add("id", b"data").size == 4
    assert registry(tmp_path, f"[storelib]\nstores = file\nfilesystem_store_datadir = {tmp_path}/more\n")["file"]


@pytest.mark.parametrize(
    ("written", "items"),
    [
        ("", []),
        ("[]", []),
        ("a", ["a"]),
        ("a, b", ["a", "b"]),
        ("[a,b]", ["a", "b"]),
        (" [ a , b ] ", ["a", "b"]),
        ("['a', \"b\"]", ["a", "b"]),
        ('"a, b",c', ["a, b", "c"]),
        ("'a'", ["a"]),
        ("a,b,", ["a", "b"]),
        ("a,,b", ["a", "", "b"]),
        ("[x],[y]", ["[x]", "[y]"]),
        (["a", "b"], ["a", "b"]),
    ],
)
def test_names_are_written_in_every_usual_way(written, items):
    assert Names()(written) == items


@pytest.mark.parametrize("written", ["'a", '"a", "b', "['a]", "a'b"])
def test_quotes_of_names_have_to_match(written):
    with pytest.raises(ValueError, match="quotes"):
        Names()(written)
