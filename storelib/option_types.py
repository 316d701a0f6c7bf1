# SPDX-License-Identifier: Apache-2.0
"""Types of options beyond those of oslo.config, for drivers and programs alike."""

from __future__ import annotations

from oslo_config import types


class LocalPath(types.String):
    """The path of a local file or directory. A relative one is of the directory of the file that sets the option.

    ``config.py`` sees to that: a service that is started elsewhere must not find other images, or none.
    """
