# Hardware addresses and IP addresses: conversion between bytes and text.


def hwaddr_from_ip(bytes packed) -> str:
    cdef uint8_t out[CNI_HWADDR_LEN]
    if len(packed) not in (4, 16):
        raise ValueError(f"an IP address has 4 or 16 bytes, not {len(packed)}")
    cni_hwaddr_from_ip(packed, len(packed), out)
    return hwaddr_text(out)


cdef str hwaddr_text(const uint8_t *hwaddr):
    cdef char text[CNI_HWADDR_TEXT]
    cni_hwaddr_format(hwaddr, text)
    return text.decode("ascii")


def parse_hwaddr(str text not None) -> bytes:
    cdef uint8_t out[CNI_HWADDR_LEN]
    cdef bytes encoded = text.encode("utf-8", "replace")
    if cni_hwaddr_parse(encoded, out) < 0 or b"\0" in encoded:
        raise ValueError(f"address {text}: invalid MAC address")
    return (<char *>out)[:CNI_HWADDR_LEN]


def parse_ip(str text not None) -> bytes:
    cdef uint8_t out[16]
    cdef bytes encoded = text.encode("utf-8", "replace")
    cdef int length = -1 if b"\0" in encoded else cni_ip_parse(encoded, out)
    if length < 0:
        raise ValueError(f"invalid IP address: {text}")
    return (<char *>out)[:length]


def format_ip(bytes packed) -> str:
    cdef char text[CNI_IP_TEXT]
    if len(packed) not in (4, 16):
        raise ValueError(f"an IP address has 4 or 16 bytes, not {len(packed)}")
    cni_ip_format(packed, len(packed), text)
    return text.decode("ascii")
