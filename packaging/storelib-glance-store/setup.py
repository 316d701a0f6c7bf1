# SPDX-License-Identifier: Apache-2.0
"""Puts the line that Python reads when it starts beside the module; setup.cfg has no word for that."""

import os
import shutil

from setuptools import setup
from setuptools.command.build_py import build_py

LINE = "storelib-glance-store.pth"


class WithLine(build_py):
    """Copies the line, too."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.mkpath(self.build_lib)
            shutil.copy(LINE, os.path.join(self.build_lib, LINE))


setup(cmdclass={"build_py": WithLine})
