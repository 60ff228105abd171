# Tracing: the observer of a thread's steps (cni/system/tracing.py).

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject


cdef extern from *:
    """
    static _Thread_local PyObject *cni_observer; /* usually NULL; the thread owns the reference */
    """
    PyObject *cni_observer


def observer():
    return None if cni_observer is NULL else <object>cni_observer


def observe(new):
    global cni_observer
    previous = observer()
    if new is not None:
        Py_INCREF(new)
    cni_observer = NULL if new is None else <PyObject *>new
    if previous is not None:
        Py_DECREF(previous)
    return previous


cdef object begin(str kind, str words, object path=None):
    """Report that a step begins. Return the observer, usually None, which finish() reports the end to."""
    if cni_observer is NULL:
        return None
    current = <object>cni_observer
    current.begin(kind, words if path is None else f"{words} {fsdecode(fsencode(path))}")
    return current


@cython.final
cdef class observed:
    cdef str kind
    cdef str words
    cdef object observer

    def __cinit__(self, str kind, str words):
        self.kind = kind
        self.words = words

    def __enter__(self):
        if cni_observer is not NULL:
            self.observer = <object>cni_observer
            self.observer.begin(self.kind, self.words)
        return self.observer

    def __exit__(self, kind, error, traceback):
        if self.observer is not None:
            self.observer.end(error)
