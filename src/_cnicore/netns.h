/* Network namespaces by descriptor.
 *
 * Every function returns with the calling thread in the namespace that it came from,
 * with one exception (cni_netns_pin). If the thread cannot return, the process aborts:
 * neither Python code nor a runtime's may go on in a namespace that it did not choose. */
#ifndef CNI_NETNS_H
#define CNI_NETNS_H

#include <sys/types.h>

#include "error.h"

/* Open the calling thread's namespace. Return a descriptor. */
int cni_netns_current(struct cni_error *err);

/* Open a namespace's file. It must belong to nsfs or procfs and be a network
 * namespace: EINVAL if it is not, ENOENT if it is missing. */
int cni_netns_open(const char *path, struct cni_error *err);

/* Return 0 if `fd` is a network namespace, else -1. */
int cni_netns_verify(int fd, const char *name, struct cni_error *err);

/* Identifies a namespace while it lives. */
struct cni_identity {
    uint64_t device, inode;
};
int cni_netns_identity(int fd, struct cni_identity *identity, struct cni_error *err);

/* Create a namespace. With a path it is kept alive by a bind mount on a new file
 * there; with NULL it lives as long as the descriptor that is returned. */
int cni_netns_create(const char *path, struct cni_error *err);

/* Make mounts below `folder` visible in other mount namespaces, as `ip netns` does
 * for /run/netns. */
int cni_netns_share(const char *folder, struct cni_error *err);

/* Unmount the namespace and remove its file. A missing one is success. */
int cni_netns_remove(const char *path, struct cni_error *err);

/* Open a socket or a file that belongs to the namespace `netns`, or with
 * CNI_NETNS_OWN to the thread's own: enter, open and return in one call. */
#define CNI_NETNS_OWN (-1)
int cni_netns_socket(int netns, int domain, int type, int protocol, struct cni_error *err);
int cni_netns_open_file(int netns, const char *path, int flags, struct cni_error *err);

/* An existing file, and the data to write to it in one write; `status` becomes 0 or an errno. */
struct cni_file {
    const char *path;
    const char *data;
    size_t length;
    int status;
};

/* Write to files as they are in the namespace, such as those below /proc/sys/net. */
int cni_netns_write_files(int netns, struct cni_file *files, size_t count, struct cni_error *err);

/* Move the calling thread permanently: for threads that end in the namespace. */
int cni_netns_pin(int netns, struct cni_error *err);

#endif
