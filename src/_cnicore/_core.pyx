# cython: language_level=3, freethreading_compatible=True, embedsignature=False, binding=False
"""The native core: namespaces by descriptor, rtnetlink, addresses, files.

C has sockets, buffers, namespaces and files; Cython says what is in a netlink message.
Types and docstrings for users are in ``cni/_core.pyi``, the contracts of the C
functions in their headers.
"""

import errno as _errno

from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from includes cimport system as sys
from includes.core cimport *

# Not os: it is not imported yet when a plugin starts, and would cost 0.8 ms.
from posix import fspath, strerror

include "text.pxi"
include "tracing.pxi"
include "netns.pxi"
include "files.pxi"
include "addresses.pxi"
include "objects.pxi"
include "netlink.pxi"
