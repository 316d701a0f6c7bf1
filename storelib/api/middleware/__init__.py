# SPDX-License-Identifier: Apache-2.0
"""What stands around the API itself: who asks, which version is meant, how errors are told, what is counted."""
