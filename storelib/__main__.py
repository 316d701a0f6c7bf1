# SPDX-License-Identifier: Apache-2.0
"""``python -m storelib``: the command line under an interpreter of one's choice."""

from storelib.cli.main import main

main()
