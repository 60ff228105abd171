"""Build the cffi binding of libnftables: write cni/_nftables.py.

ABI mode, out of line: the generated module is plain Python that needs only `_cffi_backend` (0.5 ms to import) and opens
libnftables.so.1 when it is first used, so neither its headers nor the library have to be there when a wheel is built.

    python src/_cnicore/nftables_build.py [outdir]                  writes outdir/cni/_nftables.py
    cffi_modules=["src/_cnicore/nftables_build.py:ffibuilder"]      does the same from setup.py
"""

from __future__ import annotations

import os
import sys

from cffi import FFI

# libnftables(3), as far as every release of libnftables.so.1 has it.
LIBNFTABLES = """
enum {
    NFT_CTX_DEFAULT = 0,
    NFT_CTX_OUTPUT_HANDLE = 8,
    NFT_CTX_OUTPUT_JSON = 16,
};

struct nft_ctx;

struct nft_ctx *nft_ctx_new(uint32_t flags);
void nft_ctx_free(struct nft_ctx *ctx);

int nft_ctx_buffer_output(struct nft_ctx *ctx);
const char *nft_ctx_get_output_buffer(struct nft_ctx *ctx);
int nft_ctx_buffer_error(struct nft_ctx *ctx);
const char *nft_ctx_get_error_buffer(struct nft_ctx *ctx);

void nft_ctx_output_set_flags(struct nft_ctx *ctx, unsigned int flags);

int nft_run_cmd_from_buffer(struct nft_ctx *ctx, const char *buf);
"""

# libc, which libnftables links: a socket shows beforehand if the kernel supports netfilter's netlink.
LIBC = """
enum {
    AF_NETLINK = 16,
    SOCK_RAW = 3,
    NETLINK_NETFILTER = 12,
};

int socket(int domain, int type, int protocol);
"""

ffibuilder = FFI()
ffibuilder.set_source("cni._nftables", None)
ffibuilder.cdef(LIBNFTABLES + LIBC)

if __name__ == "__main__":
    target = os.path.join(sys.argv[1] if len(sys.argv) > 1 else ".", "cni", "_nftables.py")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    ffibuilder.emit_python_code(target)
