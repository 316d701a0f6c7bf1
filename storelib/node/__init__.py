# SPDX-License-Identifier: Apache-2.0
"""The agent on a node: fetches the images that the image API wants there, verifies and publishes them, passes on parts.

It speaks to the API over HTTP alone and imports nothing of it.
"""
