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

    def get_source_files(self):
        # Of these a source distribution is made, of which distributions make packages.
        return [*super().get_source_files(), LINE]


setup(cmdclass={"build_py": WithLine})
