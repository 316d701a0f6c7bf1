# SPDX-License-Identifier: Apache-2.0
"""What becomes of qemu-img when the process that has begun it is killed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

#: Tells its process id, and runs on.
QEMU = """#!/bin/sh
exec >"$1"
echo $$
exec sleep 60
"""
RUN = "import sys; from storelib import qemu_img; qemu_img.run(sys.argv[1:], lambda: None, 60, 0)"


def test_it_ends_with_the_process_that_has_begun_it(tmp_path):
    program, told = tmp_path / "qemu-img", tmp_path / "told"
    program.write_text(QEMU)
    program.chmod(0o755)
    os.mkfifo(told)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    began = subprocess.Popen([sys.executable, "-c", RUN, str(told)], env=environment)
    with open(told, encoding="ascii") as file:
        pid = int(file.readline())
        began.kill()
        began.wait()
        # Its end closes it.
        ended = select.select([file], [], [], 20)[0] and not file.read()
    if not ended:
        os.kill(pid, signal.SIGKILL)
    assert ended
