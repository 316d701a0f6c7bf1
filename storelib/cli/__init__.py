# SPDX-License-Identifier: Apache-2.0
"""The ``storelib`` command. Its modules import storelib's own only inside functions, so that --help is quick."""
