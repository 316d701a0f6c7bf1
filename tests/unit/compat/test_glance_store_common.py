# SPDX-License-Identifier: Apache-2.0
"""What drivers written for glance_store find in ``glance_store.common``."""

from __future__ import annotations

import json
import types

import pytest
import tenacity

from storelib.compat.glance_store import exceptions

cinder_exception = pytest.importorskip("cinderclient.exceptions")

from storelib.compat.glance_store.common import cinder_utils, fs_mount  # noqa: E402

NOT_YET = "Volume 7 status must be available or downloading to reserve, but the current status is creating."


class Failing:
    """Fails with these errors in turn, then returns what it was called with."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.calls = 0

    def __call__(self, *arguments, **named):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return arguments, named


def client(**functions):
    attachments = types.SimpleNamespace(**functions)
    return types.SimpleNamespace(attachments=attachments, volumes=attachments)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    waits = []
    # Not time.sleep itself, which threads that other tests left may be in.
    monkeypatch.setattr(tenacity.nap, "time", types.SimpleNamespace(sleep=waits.append))
    return waits


class TestCinderUtils:
    def test_a_volume_that_is_not_there_yet_is_waited_for(self, at_once):
        create = Failing(cinder_exception.BadRequest(400, NOT_YET), cinder_exception.BadRequest(400, NOT_YET))
        connector = {"host": "here"}
        found = cinder_utils.API().attachment_create(client(create=create), "7", connector, "/dev/vdb", mode="ro")
        assert found == (("7", {"host": "here", "mountpoint": "/dev/vdb"}), {"mode": "ro"})
        assert at_once == [1.0, 2.0]

    def test_how_often_is_configured(self):
        create = Failing(*(cinder_exception.BadRequest(400, NOT_YET) for _ in range(9)))
        api = cinder_utils.API(types.SimpleNamespace(cinder_attachment_retry_attempts=2))
        with pytest.raises(cinder_exception.BadRequest):
            api.attachment_create(client(create=create), "7")
        assert create.calls == 2

    def test_another_refusal_is_final(self):
        create = Failing(cinder_exception.BadRequest(400, "no such host"))
        with pytest.raises(cinder_exception.BadRequest):
            cinder_utils.API().attachment_create(client(create=create), "7")
        assert create.calls == 1

    def test_detaching_is_tried_again_where_cinder_fails(self):
        from cinderclient.apiclient.exceptions import InternalServerError

        delete = Failing(InternalServerError("boom"), InternalServerError("boom"))
        cinder_utils.API().attachment_delete(client(delete=delete), "a")
        assert delete.calls == 3

    @pytest.mark.parametrize("kind", [cinder_exception.NotFound, cinder_exception.OverLimit])
    def test_what_callers_catch(self, kind):
        api = cinder_utils.API()
        for ask, name in ((api.get, "get"), (api.attachment_get, "show")):
            with pytest.raises(exceptions.BackendException):
                ask(client(**{name: Failing(kind(404))}), "7")
        with pytest.raises(exceptions.BackendException):
            api.extend_volume(client(extend=Failing(kind(404))), types.SimpleNamespace(id="7"), 2)

    def test_a_volume(self):
        made = cinder_utils.API().create(client(create=Failing()), 3, "name", "type", {"a": "b"})
        assert made == ((3,), {"name": "name", "volume_type": "type", "metadata": {"a": "b"}})


class TestMounts:
    @pytest.fixture
    def place(self, tmp_path, monkeypatch):
        """A mount point, and the commands that were run."""
        from oslo_concurrency import lockutils

        lockutils.set_defaults(str(tmp_path / "lock"))
        found = types.SimpleNamespace(path=str(tmp_path / "mnt" / "abc"), commands=[], mounted=False, fails=False)

        def execute(*command, **settings):
            found.commands.append(command)
            assert settings["root_helper"] == "sudo"
            if found.fails:
                raise fs_mount.processutils.ProcessExecutionError("no")
            found.mounted = command[0] == "mount"

        monkeypatch.setattr(fs_mount.processutils, "execute", execute)
        monkeypatch.setattr(fs_mount.os.path, "ismount", lambda path: found.mounted)
        return found

    def mount(self, place):
        fs_mount.mount("nfs", "host:/x", "volume", place.path, "me", "sudo", ["-o", "ro"])

    def umount(self, place):
        fs_mount.umount("volume", place.path, "me", "sudo")

    def test_it_is_mounted_once_and_until_the_last(self, place, tmp_path):
        self.mount(place)
        self.mount(place)
        assert place.commands == [("mount", "-t", "nfs", "-o", "ro", "host:/x", place.path)]
        # As glance_store writes it.
        state = tmp_path / "mnt" / "_state" / "mount_state_abc.json"
        assert json.loads(state.read_text()) == {"attachment_count": 2}
        self.umount(place)
        assert place.mounted
        self.umount(place)
        assert place.commands[1:] == [("umount", place.path)]
        assert not state.exists()
        assert not (tmp_path / "mnt" / "abc").exists()

    def test_what_cannot_be_mounted_is_not_counted(self, place, tmp_path):
        place.fails = True
        with pytest.raises(fs_mount.processutils.ProcessExecutionError):
            self.mount(place)
        assert not (tmp_path / "mnt" / "_state").exists()

    def test_what_cannot_be_unmounted_is_tried_again(self, place, tmp_path):
        self.mount(place)
        place.fails = True
        self.umount(place)
        assert place.mounted
        place.fails = False
        # Nobody uses it any more, as far as is known.
        self.umount(place)
        assert not place.mounted
