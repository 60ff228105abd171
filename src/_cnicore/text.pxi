# Paths and names: conversion between the operating system's bytes and Python's text.

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)
    str PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t length)


def fsencode(path) -> bytes:
    path = fspath(path)
    return path if isinstance(path, bytes) else PyUnicode_EncodeFSDefault(path)


def fsdecode(bytes path) -> str:
    return PyUnicode_DecodeFSDefaultAndSize(path, len(path))


cdef bytes c_text(object text):
    """Encode a path or a name for C. Raises ValueError if a NUL would cut it short."""
    cdef bytes encoded = fsencode(text)
    if b"\0" in encoded:
        raise ValueError(f"{text!r} has a NUL in it")
    return encoded
