# Namespaces: descriptors in, descriptors out.


cdef enum:
    MOST_FILES = 16


class KernelError(OSError):
    def __init__(self, int status, str attempt):
        super().__init__(status, strerror(status).lower())
        self.attempt = attempt

    def __str__(self) -> str:
        return f"{self.attempt}: {self.strerror}"


cdef object failure(cni_error *err):
    return KernelError(err.status, err.what.decode("utf-8", "replace"))


cdef int finish(object observer, int status, cni_error *err) except -1:
    """Report the end of the step that begin() reported. Return `status`, or raise the error."""
    error = failure(err) if status < 0 else None
    if observer is not None:
        observer.end(error)
    if error is not None:
        raise error
    return status


def netns_current() -> int:
    cdef cni_error err
    cdef int fd
    with nogil:
        fd = cni_netns_current(&err)
    if fd < 0:
        raise failure(&err)
    return fd


def netns_open(path) -> int:
    cdef cni_error err
    cdef int fd
    cdef bytes encoded = c_text(path)
    cdef const char *text = encoded
    observer = begin("namespace", "open the namespace", path)
    with nogil:
        fd = cni_netns_open(text, &err)
    return finish(observer, fd, &err)


def netns_verify(int fd, str name) -> None:
    cdef cni_error err
    cdef bytes encoded = c_text(name)
    if cni_netns_verify(fd, encoded, &err) < 0:
        raise failure(&err)


def netns_identity(int fd) -> tuple:
    cdef cni_error err
    cdef cni_identity identity
    if cni_netns_identity(fd, &identity, &err) < 0:
        raise failure(&err)
    return identity.device, identity.inode


def netns_create(path=None) -> int:
    cdef cni_error err
    cdef int fd
    cdef bytes encoded
    cdef const char *text = NULL
    if path is not None:
        encoded = c_text(path)
        text = encoded
    observer = begin("namespace", "create a namespace", path)
    with nogil:
        fd = cni_netns_create(text, &err)
    return finish(observer, fd, &err)


def netns_share(folder) -> None:
    cdef cni_error err
    cdef int status
    cdef bytes encoded = c_text(folder)
    cdef const char *text = encoded
    with nogil:
        status = cni_netns_share(text, &err)
    if status < 0:
        raise failure(&err)


def netns_remove(path) -> None:
    cdef cni_error err
    cdef int status
    cdef bytes encoded = c_text(path)
    cdef const char *text = encoded
    observer = begin("namespace", "remove the namespace", path)
    with nogil:
        status = cni_netns_remove(text, &err)
    finish(observer, status, &err)


def netns_socket(int netns, int domain, int type, int protocol=0) -> int:
    cdef cni_error err
    cdef int fd
    with nogil:
        fd = cni_netns_socket(netns, domain, type, protocol, &err)
    if fd < 0:
        raise failure(&err)
    return fd


def netns_open_file(int netns, path, int flags) -> int:
    cdef cni_error err
    cdef int fd
    cdef bytes encoded = c_text(path)
    cdef const char *text = encoded
    observer = begin("file", "open", path)
    with nogil:
        fd = cni_netns_open_file(netns, text, flags, &err)
    return finish(observer, fd, &err)


def netns_write_files(int netns, list files) -> list:
    cdef cni_error err
    cdef cni_file requests[MOST_FILES]
    cdef int status
    cdef size_t i, count = len(files)
    cdef list paths = [c_text(path) for path, _ in files]  # the structs point into them
    cdef bytes data
    if count > MOST_FILES:
        raise ValueError(f"write {count} files: {MOST_FILES} at most")
    for i in range(count):
        data = files[i][1]
        requests[i].path = <bytes>paths[i]
        requests[i].data = data
        requests[i].length = len(data)
        requests[i].status = 0
    observer = None
    if cni_observer is not NULL:  # without the data, which may be secret
        observer = begin("file", "\n".join([f"write {fsdecode(path)}" for path in paths]))
    with nogil:
        status = cni_netns_write_files(netns, requests, count, &err)
    finish(observer, status, &err)
    return [requests[i].status for i in range(count)]


def netns_pin(int netns) -> None:
    cdef cni_error err
    cdef int status
    with nogil:
        status = cni_netns_pin(netns, &err)
    if status < 0:
        raise failure(&err)
