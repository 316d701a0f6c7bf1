# SPDX-License-Identifier: Apache-2.0
"""What drivers written for glance_store take their translations from."""

from __future__ import annotations

from oslo_i18n import TranslatorFactory

_translators = TranslatorFactory(domain="glance_store")

_ = _translators.primary
_LI = _translators.log_info
_LW = _translators.log_warning
_LE = _translators.log_error
_LC = _translators.log_critical
