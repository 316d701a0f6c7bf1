# SPDX-License-Identifier: Apache-2.0
"""What the image API and the agents on nodes share: the parts that an image is exchanged in. Nothing here connects."""
