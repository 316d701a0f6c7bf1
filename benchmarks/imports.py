# SPDX-License-Identifier: Apache-2.0
"""What ``import storelib`` costs beyond the interpreter, beside what the same service would import otherwise.

python benchmarks/imports.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

LIMIT = 0.100


def seconds(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begun


def cost(module: str, rounds: int = 9) -> float:
    """Median of the paired differences to an interpreter that imports nothing, in seconds."""
    return statistics.median(seconds(f"import {module}") - seconds("pass") for _ in range(rounds))


if __name__ == "__main__":
    for module in ("storelib", "oslo_config.cfg", "storelib.driver", "storelib.cli.main", "glance_store"):
        print(f"import {module:24} {cost(module) * 1000:7.1f} ms")
    print(f"limit for storelib: {LIMIT * 1000:.0f} ms")
