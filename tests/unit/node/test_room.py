# SPDX-License-Identifier: Apache-2.0
"""Room for a new image where instances stand on others: what that costs a node with many of both."""

from __future__ import annotations

import struct
from dataclasses import replace

import lone_agent
import pytest

from storelib.node import options, publishing
from storelib.node.copies import Copy, Workshop
from storelib.node.disk import Disk, Record
from storelib.node.publishing import Target
from storelib.node.room import Room


class Node:
    """A node in nova's layout, whose images may have ``budget`` bytes."""

    def __init__(self, directory, budget):
        (directory / "node.ini").write_text(lone_agent.INI)
        settings, _ = options.load(directory / "node.ini")
        instances = directory / "instances"
        places = {"state_dir": directory / "state", "target_dir": instances / "_base"}
        settings = replace(settings, **places, layout="nova", budget=budget)
        self.instances, self.target = instances, Target(settings)
        self.target.prepare()
        self.disk = Disk(settings)
        self.room = Room(settings, self.disk, self.target)
        self.workshop = Workshop(self.disk, self.target, None)

    def image(self, name):
        """One that is ready."""
        place = self.target.path(name)
        place.write_bytes(b"x" * 4096)
        found = place.stat()
        return Copy(Record(name, 4096, "sha512", "", published=(found.st_dev, found.st_ino)), self.workshop)

    def instance(self, name, image):
        """The disk of an instance, an overlay of the image's file."""
        backing = str(self.target.path(image)).encode()
        (self.instances / name).mkdir()
        header = struct.pack(">4sIQI", b"QFI\xfb", 3, 64, len(backing)).ljust(64, b"\0")
        (self.instances / name / "disk").write_bytes(header + backing)

    def room_for_a_new_one(self, images):
        new = Copy(Record("new", 4096, "sha512", ""), self.workshop)
        return self.room.for_one(new, [*images, new])


@pytest.fixture
def opened(monkeypatch):
    """The disks of instances that were opened."""
    found = []
    look = publishing._backing_file
    monkeypatch.setattr(publishing, "_backing_file", lambda disk: (found.append(disk), look(disk))[1])
    return found


def test_each_disk_of_an_instance_is_opened_once_however_many_images_might_go(tmp_path, opened):
    node = Node(tmp_path, budget=3 * 4096)
    images = [node.image("first"), node.image("second"), node.image("third")]
    node.instance("one", "first")
    node.instance("other", "second")

    assert node.room_for_a_new_one(images) == [images[2]]
    assert len(opened) == 2


def test_no_disk_of_an_instance_is_opened_where_there_is_room(tmp_path, opened):
    node = Node(tmp_path, budget=0)
    node.instance("one", "first")

    assert node.room_for_a_new_one([node.image("first")]) == []
    assert opened == []
