# SPDX-License-Identifier: Apache-2.0
"""What images are, and what they would make a hypervisor do: looked at by the API as data comes, and by nodes."""
