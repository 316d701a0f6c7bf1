# SPDX-License-Identifier: Apache-2.0
"""Ceph's librados and librbd as all drivers that keep bytes in RBD images use them.

Connections with deadlines that survive a fork, the names in a pool, images and their extents, and what errors mean.
Everything is given as plain values: nothing here knows a store or its options. Needs the distribution's Python
bindings.
"""
