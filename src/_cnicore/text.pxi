# Paths and names, between the operating system's bytes and Python's text.

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)
    str PyUnicode_DecodeFSDefaultAndSize(const char *text, Py_ssize_t length)


def fsencode(path) -> bytes:
    path = fspath(path)
    return path if isinstance(path, bytes) else PyUnicode_EncodeFSDefault(path)


def fsdecode(bytes path) -> str:
    return PyUnicode_DecodeFSDefaultAndSize(path, len(path))
