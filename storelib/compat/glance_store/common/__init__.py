# SPDX-License-Identifier: Apache-2.0
"""What drivers written for glance_store import of its helpers."""
