"""Written at build time by src/_cnicore/nftables_build.py."""

from typing import Any

ffi: Any
