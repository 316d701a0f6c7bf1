# SPDX-License-Identifier: Apache-2.0
"""A user of Cinder, and ids of volumes, for tests of the cinder driver that need no server."""

from __future__ import annotations

VOLUME = "33c6949d-91db-484c-8be2-5c3d62d05560"
OTHER = "64a60dc0-2de2-4f0f-a2be-a5ffb8c38e7a"
USER = {
    "cinder_store_auth_address": "https://keystone:5000",
    "cinder_store_user_name": "images",
    "cinder_store_password": "hunter2",
    "cinder_store_project_name": "service",
}
