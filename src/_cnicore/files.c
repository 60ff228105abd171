#define _GNU_SOURCE
#include "files.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHUNK 4096 /* bytes: holds most files */

/* Read until a read is short, which is the end of a regular file. Return 0, or an errno. */
static int read_all(int fd, char **data, size_t *length)
{
    for (size_t capacity = CHUNK;; capacity *= 2) {
        char *more = realloc(*data, capacity);

        if (!more)
            return ENOMEM;
        *data = more;
        while (*length < capacity) {
            size_t room = capacity - *length;
            ssize_t count = read(fd, *data + *length, room);

            if (count < 0 && errno == EINTR)
                continue;
            if (count < 0)
                return errno;
            *length += (size_t)count;
            if ((size_t)count < room)
                return 0;
        }
    }
}

int cni_file_read(int folder, const char *name, char **data, size_t *length, struct cni_error *err)
{
    int status, fd = openat(folder, name, O_RDONLY | O_NONBLOCK | O_NOFOLLOW | O_CLOEXEC);

    *data = NULL;
    *length = 0;
    if (fd < 0)
        return cni_fail(err, errno, "open \"%s\"", name);
    status = read_all(fd, data, length);
    close(fd);
    if (!status)
        return 0;
    free(*data);
    return cni_fail(err, status, "read \"%s\"", name);
}

static int write_all(int fd, const char *data, size_t length)
{
    while (length) {
        ssize_t count = write(fd, data, length);

        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return errno;
        data += count;
        length -= (size_t)count;
    }
    return 0;
}

int cni_file_write(int folder, const char *name, const char *data, size_t length, int append, struct cni_error *err)
{
    int mode = append ? O_APPEND : O_TRUNC;
    int status, fd = openat(folder, name, O_WRONLY | O_CREAT | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | mode, 0600);

    if (fd < 0)
        return cni_fail(err, errno, "create \"%s\"", name);
    status = write_all(fd, data, length);
    if (close(fd) < 0 && !status)
        status = errno; /* some file systems report a full disk only now */
    return status ? cni_fail(err, status, "write \"%s\"", name) : 0;
}

int cni_file_replace(int folder, const char *name, const char *temporary, const char *data, size_t length,
                     struct cni_error *err)
{
    int status = cni_file_write(folder, temporary, data, length, 0, err);

    if (!status && renameat(folder, temporary, folder, name) < 0)
        status = cni_fail(err, errno, "rename \"%s\" to \"%s\"", temporary, name);
    if (status)
        unlinkat(folder, temporary, 0);
    return status;
}
