# SPDX-License-Identifier: Apache-2.0
"""The drivers by the names of their modules in glance_store."""
