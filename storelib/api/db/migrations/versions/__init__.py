# SPDX-License-Identifier: Apache-2.0
"""One file per revision. What is released is never changed; the next one adds to it."""
