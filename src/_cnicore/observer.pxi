# Who is told of the steps of what a thread does, for people who want to see them: cni/trace.py.

cimport cython
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject


cdef extern from *:
    """
    static _Thread_local PyObject *cni_observer; /* NULL, as a rule; a reference of the thread's own */
    """
    PyObject *cni_observer


def observer():
    return None if cni_observer is NULL else <object>cni_observer


def observe(new):
    global cni_observer
    before = observer()
    if new is not None:
        Py_INCREF(new)
    cni_observer = NULL if new is None else <PyObject *>new
    if before is not None:
        Py_DECREF(before)
    return before


cdef object begin(str kind, str words, object path=None):
    """Tell of a step before it is taken. Returns who is to be told of its end, None as a rule: see finish()."""
    if cni_observer is NULL:
        return None
    told = <object>cni_observer
    told.begin(kind, words if path is None else f"{words} {fsdecode(fsencode(path))}")
    return told


@cython.final
cdef class observed:
    cdef str kind
    cdef str words
    cdef object told

    def __cinit__(self, str kind, str words):
        self.kind = kind
        self.words = words

    def __enter__(self):
        if cni_observer is not NULL:
            self.told = <object>cni_observer
            self.told.begin(self.kind, self.words)
        return self.told

    def __exit__(self, kind, error, traceback):
        if self.told is not None:
            self.told.end(error)
