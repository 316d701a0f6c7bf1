# SPDX-License-Identifier: Apache-2.0
"""A project in Cinder as any user with a token sees it; nothing of the driver is used."""

import urllib.parse

from storelib.testing.conformance import BackendAccess


class Project(BackendAccess):
    def __init__(self, cinder, user="demo"):
        self.cinder = cinder
        self.token, _ = cinder.keystone.token(user, user)

    def call(self, method, path, body=None):
        return self.cinder.call(method, path, body, X_Auth_Token=self.token)

    def volumes(self, prefix=""):
        found = self.call("GET", "/volumes/detail")["volumes"]
        return [each for each in found if image_id_of(each).startswith(prefix)]

    def attachments(self, volume=None):
        query = f"?volume_id={volume}" if volume else ""
        return self.call("GET", f"/attachments{query}")["attachments"]

    def read(self, image_id):
        for each in self.volumes(image_id):
            if image_id_of(each) == image_id and each["metadata"]["storelib_state"] == "complete":
                return self.contents(each["id"], int(each["metadata"]["image_size"]))
        return None

    def residue(self, prefix):
        return {f"{each['id']} ({each['status']})" for each in self.volumes(prefix)}

    def contents(self, volume, size):
        """The first ``size`` bytes of a volume, read where Cinder keeps it."""
        raise NotImplementedError


def image_id_of(volume):
    pieces = [(key, value) for key, value in volume["metadata"].items() if key.startswith("glance_image_id")]
    pieces.sort(key=lambda piece: (len(piece[0]), piece[0]))
    return urllib.parse.unquote("".join(value for _, value in pieces))
