/* Network namespaces by descriptor.
 *
 * No function here leaves the calling thread in another namespace than it came
 * from, with one exception that says so in its name (cni_netns_pin).  Where the
 * way back is barred the process aborts: Python code, or a runtime's, must never
 * go on in a namespace it did not choose. */
#ifndef CNI_NETNS_H
#define CNI_NETNS_H

#include <sys/types.h>

#include "error.h"

/* The namespace that the calling thread is in. */
int cni_netns_current(struct cni_error *err);

/* Open a namespace's file.  The file must belong to nsfs or procfs and be a
 * network namespace: EINVAL where it is not, ENOENT where it is missing. */
int cni_netns_open(const char *path, struct cni_error *err);

/* Is `fd` a network namespace?  0 or -1. */
int cni_netns_verify(int fd, const char *name, struct cni_error *err);

/* The same for the same namespace, while it lives. */
struct cni_identity {
    uint64_t device, inode;
};
int cni_netns_identity(int fd, struct cni_identity *identity, struct cni_error *err);

/* A new namespace.  With a path it is kept alive by a bind mount on a new file
 * there; with NULL it lives as long as the descriptor that is returned. */
int cni_netns_create(const char *path, struct cni_error *err);

/* Let mounts made below `folder` be seen in other mount namespaces, as
 * `ip netns` does for /run/netns. */
int cni_netns_share(const char *folder, struct cni_error *err);

/* Undo the bind mount and remove its file. A missing one is success. */
int cni_netns_remove(const char *path, struct cni_error *err);

/* A socket, or an open file, that belongs to the namespace `netns`, or with
 * CNI_NETNS_OWN to the thread's own.  Enter, act and return in this one call. */
#define CNI_NETNS_OWN (-1)
int cni_netns_socket(int netns, int domain, int type, int protocol, struct cni_error *err);
int cni_netns_open_file(int netns, const char *path, int flags, struct cni_error *err);

/* A file that is there, and what is to be written to it in one write; `status` becomes 0 or an errno. */
struct cni_file {
    const char *path;
    const char *data;
    size_t length;
    int status;
};

/* Write files as they are in the namespace, such as those below /proc/sys/net. */
int cni_netns_write_files(int netns, struct cni_file *files, size_t count, struct cni_error *err);

/* Move the calling thread for good. For threads that end there. */
int cni_netns_pin(int netns, struct cni_error *err);

#endif
