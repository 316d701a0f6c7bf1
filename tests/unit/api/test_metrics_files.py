# SPDX-License-Identifier: Apache-2.0
"""What dead workers counted is kept in one file, and each once."""

from __future__ import annotations

import pytest
from prometheus_client.mmap_dict import MmapedDict

from storelib.api.middleware import metrics_files


@pytest.fixture
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    return tmp_path


def count(path, **values):
    counted = MmapedDict(str(path))
    for name, value in values.items():
        counted.write_value(name, value, 0)
    counted.close()


def counts(path):
    return {key: value for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path))}


def test_the_dead_are_added_up(directory):
    count(directory / "counter_1.db", a=1, b=2)
    count(directory / "counter_2.db", b=3, **{f"c{number}": number for number in range(3000)})
    count(directory / "counter_3.db", a=50)
    count(directory / "histogram_2.db", h=7)
    count(directory / "gauge_livesum_2.db", g=7)
    metrics_files.mark_process_dead(1)
    metrics_files.mark_process_dead(2)
    assert sorted(path.name for path in directory.glob("*.db")) == [
        "counter_3.db",
        "counter_dead.db",
        "histogram_dead.db",
    ]
    found = counts(directory / "counter_dead.db")
    assert (found["a"], found["b"], found["c2999"]) == (1, 5, 2999)
    assert counts(directory / "histogram_dead.db") == {"h": 7}


def test_a_file_that_was_never_completed_is_dropped(directory):
    (directory / "counter_1.db").write_bytes(b"\xff\x7f\0\0" + bytes(4) + b"\xff\xff\xff\x7f" + bytes(100))
    metrics_files.mark_process_dead(1)
    assert list(directory.glob("*.db")) == []


def test_without_a_directory_nothing_is_done(monkeypatch):
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    metrics_files.mark_process_dead(1)
