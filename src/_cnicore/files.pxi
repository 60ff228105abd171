# Files by the descriptor of their folder, each in one call.


def read_file(int folder, name):
    cdef cni_error err
    cdef bytes encoded = c_text(name)
    cdef const char *text = encoded
    cdef char *data
    cdef size_t length
    cdef int status
    with nogil:
        status = cni_file_read(folder, text, &data, &length, &err)
    if status < 0:
        if err.status == _errno.ENOENT:
            return None
        raise failure(&err)
    try:
        return <bytes>data[:length]
    finally:
        free(data)


def write_file(int folder, name, bytes data, *, bint append=False) -> None:
    cdef cni_error err
    cdef bytes encoded = c_text(name)
    cdef const char *text = encoded
    cdef const char *content = data
    cdef size_t length = len(data)
    cdef int status
    with nogil:
        status = cni_file_write(folder, text, content, length, append, &err)
    if status < 0:
        raise failure(&err)


def replace_file(int folder, name, temporary, bytes data) -> None:
    cdef cni_error err
    cdef bytes encoded = c_text(name)
    cdef bytes other = c_text(temporary)
    cdef const char *text = encoded
    cdef const char *temporary_text = other
    cdef const char *content = data
    cdef size_t length = len(data)
    cdef int status
    with nogil:
        status = cni_file_replace(folder, text, temporary_text, content, length, &err)
    if status < 0:
        raise failure(&err)
