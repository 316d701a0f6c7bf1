# SPDX-License-Identifier: Apache-2.0
"""How a process calls functions for the tests: a line of JSON in, a line of JSON out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any


def serve(functions: Mapping[str, Callable[..., Any]]) -> None:
    """Call what standard input names until it ends; what the functions print goes to the log."""
    responses = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            response = ["returned", functions[name](*arguments)]
        except Exception as error:  # noqa: BLE001 - whatever the service raises is what the test wants to see
            traceback.print_exc()
            response = ["raised", f"{type(error).__name__}: {error}"]
        responses.write(json.dumps(response, default=str) + "\n")
