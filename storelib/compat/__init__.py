# SPDX-License-Identifier: Apache-2.0
"""glance_store's interface on storelib's stores, for Glance and other programs that were written for it.

``storelib.compat.glance_store`` is the interface; ``finder.install()`` makes it what ``import glance_store`` finds. The
package ``storelib-glance-store`` calls that when an interpreter starts, where STORELIB_GLANCE_STORE is set;
``python -m storelib.compat glance-api ...`` does for one command.
"""
