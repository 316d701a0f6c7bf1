# SPDX-License-Identifier: Apache-2.0
"""How volumes of a block-storage service, OpenStack's Cinder, come to this host and leave it again.

attachments.py is what is attached here, holds.py by whom. connectors.py is how it comes here: ceph.py, mounts.py (NFS)
and brick.py (all else), with disks.py what is open, usage.py who else uses it, root_helper.py commands of root.

Who asks the service, and what its errors mean, is the cinder driver's to know: attachments.py has a protocol of what is
asked here. So are the options; settings.py has what they say, as plain values. What people are told names them, though.
"""
