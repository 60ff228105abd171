#define _GNU_SOURCE
#include "netns.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <pthread.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* thread-self, never self: /proc/self is the main thread's. */
static const char own_namespace[] = "/proc/thread-self/ns/net";

int cni_netns_current(struct cni_error *err)
{
    int fd = open(own_namespace, O_RDONLY | O_CLOEXEC);

    return fd < 0 ? cni_fail(err, errno, "open the current network namespace (%s)", own_namespace) : fd;
}

int cni_netns_verify(int fd, const char *name, struct cni_error *err)
{
    struct statfs fs;

    if (fstatfs(fd, &fs) < 0)
        return cni_fail(err, errno, "failed to Statfs \"%s\"", name);
    if (fs.f_type != NSFS_MAGIC && fs.f_type != PROC_SUPER_MAGIC)
        return cni_fail(err, EINVAL, "unknown FS magic on \"%s\": %lx", name, (unsigned long)fs.f_type);
    if (ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET)
        return cni_fail(err, EINVAL, "\"%s\" is not a network namespace", name);
    return 0;
}

int cni_netns_open(const char *path, struct cni_error *err)
{
    struct statfs fs;
    int fd;

    /* Before open(), which can have side effects on a device or a pipe. */
    if (statfs(path, &fs) < 0)
        return cni_fail(err, errno, "failed to Statfs \"%s\"", path);
    if (fs.f_type != NSFS_MAGIC && fs.f_type != PROC_SUPER_MAGIC)
        return cni_fail(err, EINVAL, "unknown FS magic on \"%s\": %lx", path, (unsigned long)fs.f_type);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return cni_fail(err, errno, "open the network namespace \"%s\"", path);
    if (cni_netns_verify(fd, path, err) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static void enter_or_abort(int home)
{
    static const char message[] = "cni: return to the network namespace: setns failed; aborting\n";

    if (setns(home, CLONE_NEWNET) == 0)
        return;
    if (write(STDERR_FILENO, message, sizeof message - 1) < 0)
        abort();
    abort();
}

int cni_netns_identity(int fd, struct cni_identity *identity, struct cni_error *err)
{
    struct stat status;

    if (fstat(fd, &status) < 0)
        return cni_fail(err, errno, "identify the network namespace (descriptor %d)", fd);
    identity->device = status.st_dev;
    identity->inode = status.st_ino;
    return 0;
}

static bool is_same_namespace(int a, int b)
{
    struct cni_identity first, second;
    struct cni_error err;

    return cni_netns_identity(a, &first, &err) == 0 && cni_netns_identity(b, &second, &err) == 0 &&
           first.inode == second.inode && first.device == second.device;
}

/* The namespace that a thread returns to. */
struct home {
    int fd;
    bool moved; /* false: the thread never left, and `fd` is not open */
};

/* Move the thread to `netns`. Return 0, or -1 after a failure, which leaves the thread where it was. */
static int enter_namespace(int netns, struct home *home, struct cni_error *err)
{
    *home = (struct home){.fd = -1};
    if (netns == CNI_NETNS_OWN)
        return 0;
    home->fd = cni_netns_current(err);
    if (home->fd < 0)
        return -1;
    if (is_same_namespace(netns, home->fd)) {
        close(home->fd);
        return 0;
    }
    if (setns(netns, CLONE_NEWNET) < 0) {
        cni_fail(err, errno, "enter the network namespace (descriptor %d)", netns);
        close(home->fd);
        return -1;
    }
    home->moved = true;
    return 0;
}

static void return_home(const struct home *home)
{
    int saved = errno;

    if (!home->moved)
        return;
    enter_or_abort(home->fd);
    close(home->fd);
    errno = saved;
}

int cni_netns_socket(int netns, int domain, int type, int protocol, struct cni_error *err)
{
    struct home home;
    int fd;

    if (enter_namespace(netns, &home, err) < 0)
        return -1;
    fd = socket(domain, type | SOCK_CLOEXEC, protocol);
    return_home(&home);
    if (fd < 0)
        return cni_fail(err, errno, "open a socket (family %d, type %d, protocol %d)", domain, type, protocol);
    return fd;
}

int cni_netns_open_file(int netns, const char *path, int flags, struct cni_error *err)
{
    struct home home;
    int fd;

    if (enter_namespace(netns, &home, err) < 0)
        return -1;
    fd = open(path, flags | O_CLOEXEC | O_NOCTTY, 0600); /* the mode is for O_CREAT */
    return_home(&home);
    return fd < 0 ? cni_fail(err, errno, "open \"%s\"", path) : fd;
}

static int write_existing_file(const struct cni_file *file)
{
    int fd = open(file->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    int status = 0;

    if (fd < 0)
        return errno;
    /* Not a short write: some handlers of kernel parameters do not consume the newline. */
    if (write(fd, file->data, file->length) < 0)
        status = errno;
    close(fd);
    return status;
}

int cni_netns_write_files(int netns, struct cni_file *files, size_t count, struct cni_error *err)
{
    struct home home;

    if (enter_namespace(netns, &home, err) < 0)
        return -1;
    for (size_t i = 0; i < count; i++)
        files[i].status = write_existing_file(&files[i]);
    return_home(&home);
    return 0;
}

int cni_netns_pin(int netns, struct cni_error *err)
{
    if (setns(netns, CLONE_NEWNET) < 0)
        return cni_fail(err, errno, "enter the network namespace (descriptor %d)", netns);
    return 0;
}

struct creation {
    const char *path;
    int fd;
    struct cni_error *err;
};

/* Runs in a thread that ends in the new namespace, so that it need not return. */
static void *create_namespace(void *argument)
{
    struct creation *new = argument;

    if (unshare(CLONE_NEWNET) < 0) {
        cni_fail(new->err, errno, "create a network namespace");
        return NULL;
    }
    if (new->path && mount(own_namespace, new->path, "none", MS_BIND, NULL) < 0) {
        cni_fail(new->err, errno, "bind the new network namespace to \"%s\"", new->path);
        return NULL;
    }
    new->fd = cni_netns_current(new->err);
    if (new->fd < 0 && new->path)
        umount2(new->path, MNT_DETACH);
    return NULL;
}

int cni_netns_create(const char *path, struct cni_error *err)
{
    struct creation new = {path, -1, err};
    pthread_t thread;
    int file, status;

    if (path) {
        file = open(path, O_RDONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0444);
        if (file < 0)
            return cni_fail(err, errno, "create \"%s\"", path);
        close(file);
    }
    status = pthread_create(&thread, NULL, create_namespace, &new);
    if (status)
        cni_fail(err, status, "start a thread for a new network namespace");
    else
        pthread_join(thread, NULL);
    if (new.fd < 0 && path)
        unlink(path);
    return new.fd;
}

int cni_netns_share(const char *folder, struct cni_error *err)
{
    if (mount("", folder, "none", MS_SHARED | MS_REC, NULL) == 0)
        return 0;
    if (errno != EINVAL) /* EINVAL: it is no mount point yet */
        return cni_fail(err, errno, "share the mounts below \"%s\"", folder);
    if (mount(folder, folder, "none", MS_BIND | MS_REC, NULL) < 0)
        return cni_fail(err, errno, "bind \"%s\" to itself", folder);
    if (mount("", folder, "none", MS_SHARED | MS_REC, NULL) < 0)
        return cni_fail(err, errno, "share the mounts below \"%s\"", folder);
    return 0;
}

int cni_netns_remove(const char *path, struct cni_error *err)
{
    /* UMOUNT_NOFOLLOW: the path's last component must not be followed if it is a link. */
    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) < 0 && errno != EINVAL && errno != ENOENT)
        return cni_fail(err, errno, "unmount \"%s\"", path);
    if (unlink(path) < 0 && errno != ENOENT)
        return cni_fail(err, errno, "remove \"%s\"", path);
    return 0;
}
