# SPDX-License-Identifier: Apache-2.0
"""``python -m storelib.compat COMMAND ...``: runs an installed command, glance-api for example, on storelib."""

from __future__ import annotations

import importlib.metadata
import sys

from storelib.compat import finder

_USAGE = """usage: python -m storelib.compat COMMAND [ARGUMENT ...]
Runs an installed Python command, as glance-api, with storelib in place of glance_store.
"""


def main(arguments: list[str]) -> object:
    """Run the command that ``arguments`` begin with; returns its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        sys.stdout.write(_USAGE)
        return 0 if arguments else 2
    name, *_ = sys.argv = arguments
    entries = importlib.metadata.entry_points(group="console_scripts", name=name)
    if not entries:
        sys.stderr.write(f"storelib.compat: no command {name!r} is installed in {sys.prefix}\n")
        return 2
    finder.install()
    return next(iter(entries)).load()()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))  # type: ignore[arg-type]
