# SPDX-License-Identifier: Apache-2.0
"""HTTP, once for all drivers and clients that speak it, whatever library is on top.

connections.py what is below a library: connections whose responses (responses.py) are whole and final, in pools of
urllib3, and sessions of requests on them (sessions.py). reading.py images read through open responses. headers.py and
errors.py what headers, statuses and failures mean. Drivers add what is special to their protocol.
"""
