# SPDX-License-Identifier: Apache-2.0
"""What nothing reads in the files of the image API: misspelled options, and those of Glance that have another name."""

from __future__ import annotations

import logging

from oslo_config import cfg

from storelib.api.glance_options import fate
from storelib.config import OptionReader, did_you_mean, option_names

LOG = logging.getLogger(__name__)

#: Sections that are read by libraries, not all of them when the service starts.
_OTHERS = ("oslo_", "keystone_authtoken", "profiler", "os_glance_", "key_manager", "barbican", "vault")
#: Options in [DEFAULT] of oslo.messaging and oslo.log.
_OTHERS_DEFAULTS = (
    *("transport_url", "control_exchange", "executor_thread_pool_size", "rpc_"),
    *("debug", "log", "use_syslog", "use_stderr", "use_json", "use_journal", "syslog_", "default_log_levels"),
    *("instance_format", "instance_uuid_format", "rate_limit_", "publish_errors", "watch_log_file", "fatal_"),
)


def warn_of_unknown_options(conf: cfg.ConfigOpts) -> None:
    """Log each section and option in the files that nothing here reads: a misspelled one is not in force.

    ``conf`` is one whose users have registered what they read. Sections of oslo's libraries and of Keystone's
    middleware, which read them later, are theirs.
    """
    groups = {name.lower(): group for name, group in conf._groups.items()}
    names = {section: option_names(each["opt"] for each in group._opts.values()) for section, group in groups.items()}
    names["default"] = option_names(each["opt"] for each in conf._opts.values())
    sections: set[str] = set()
    for setting in OptionReader(conf).settings:
        section = setting.group.lower()
        if section.startswith(_OTHERS) or (section == "default" and setting.key.startswith(_OTHERS_DEFAULTS)):
            continue
        of_glance = fate(section, setting.key)
        if section in names and setting.key in names[section]:
            continue
        if of_glance.why or of_glance.group not in (None, section):
            LOG.warning("nothing reads %s, which is an option of Glance; here: %s", setting, of_glance)
        elif section in names:
            LOG.warning("nothing reads %s%s", setting, did_you_mean(setting.key, names[section]))
        elif section not in sections:
            sections.add(section)
            place = f"the section [{setting.group}] ({setting.place})"
            LOG.warning("nothing reads %s%s", place, did_you_mean(setting.group, groups))
