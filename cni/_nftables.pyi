"""The cffi binding of libnftables, generated at build time by src/_cnicore/nftables_build.py."""

from typing import Any

ffi: Any
