# SPDX-License-Identifier: Apache-2.0
"""For authors of drivers: MemoryStore, the conformance suite and peers that misbehave on purpose."""
