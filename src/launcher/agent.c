/* Have a warm agent serve the call; cni/agent/protocol.py has the same protocol in Python.
 *
 * launcher.c includes this file: the launcher is compiled as one unit. */
#include "system.h"

#include <linux/memfd.h>
#include <linux/sockios.h>
#include <linux/stat.h>
#include <linux/time_types.h>
#include <poll.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/un.h>

#define AGENT_SOCKET "/run/cni/agent.sock"
#define START_TIMEOUT 1 /* seconds until the agent has begun with the call, if CNI_AGENT_TIMEOUT does not say */
#define LARGEST_ENVIRONMENT (128 << 10)
#define DECLINED 256

static const char protocol[] = "cni agent 2\n\0\0\0"; /* 16 bytes */

/* The root folder, and by its mount the mount namespace: a copy of a mount namespace has mounts of its own. */
struct identity {
    uint32_t major, minor;
    uint64_t inode, mount;
};

/* Followed by the trailer's folders and reference and by the environment. Three descriptors come with it: the
 * current folder, the network namespace, and a file with the content of stdin. */
struct request {
    char magic[16];
    struct identity root;
    uint32_t code_length, environment_length;
};

/* Followed by the bytes for stdout and those for stderr. */
struct answer {
    char magic[16];
    uint32_t status, output_length, log_length;
};

static const char *variable(char **environment, const char *name)
{
    size_t length = length_of(name);

    for (; *environment; environment++)
        if (is_same(*environment, name, length) && (*environment)[length] == '=')
            return *environment + length + 1;
    return NULL;
}

static int identify(const char *path, struct identity *identity)
{
    static struct statx status;

    if (call(SYS_statx, AT_FDCWD, (long)path, 0, STATX_INO | STATX_MNT_ID, (long)&status) ||
        !(status.stx_mask & STATX_MNT_ID)) /* before Linux 5.8 */
        return -1;
    identity->mount = status.stx_mnt_id;
    identity->major = status.stx_dev_major;
    identity->minor = status.stx_dev_minor;
    identity->inode = status.stx_ino;
    return 0;
}

/* Connect to an agent that runs as this user or as root. Return a descriptor, negative if there is none. */
static long connect_to_agent(const char *path)
{
    static struct sockaddr_un address = {.sun_family = AF_UNIX};
    static struct ucred server;
    socklen_t length = sizeof server;
    long fd;

    if (length_of(path) >= sizeof address.sun_path)
        return -1;
    for (size_t i = 0; path[i]; i++)
        address.sun_path[i] = path[i];
    fd = call(SYS_socket, AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, 0, 0);
    if (fd < 0)
        return fd;
    /* An agent without room for the connection or for the request is too busy to wait for. A descriptor below 3 is
     * one that the caller left closed. */
    if (fd < 3 || call(SYS_connect, fd, (long)&address, sizeof address, 0, 0) ||
        call(SYS_getsockopt, fd, SOL_SOCKET, SO_PEERCRED, (long)&server, (long)&length) ||
        (server.uid && server.uid != (uid_t)call(SYS_geteuid, 0, 0, 0, 0, 0))) {
        call(SYS_close, fd, 0, 0, 0, 0);
        return -1;
    }
    return fd;
}

static long send_request(long fd, long input, const char *code, size_t code_length, char **environment, size_t length)
{
    static union {
        char data[CMSG_SPACE(3 * sizeof(int))];
        struct cmsghdr header;
    } control;
    static struct request request;
    struct iovec parts[] = {{&request, sizeof request}, {(void *)code, code_length}, {environment[0], length}};
    struct msghdr message = {
        .msg_iov = parts, .msg_iovlen = 3, .msg_control = &control, .msg_controllen = sizeof control};
    int *descriptors = (int *)CMSG_DATA(&control.header);
    long sent;

    for (size_t i = 0; i < sizeof request.magic; i++)
        request.magic[i] = protocol[i];
    if (identify("/", &request.root))
        return -1;
    request.code_length = (uint32_t)code_length;
    request.environment_length = (uint32_t)length;
    control.header.cmsg_level = SOL_SOCKET;
    control.header.cmsg_type = SCM_RIGHTS;
    control.header.cmsg_len = CMSG_LEN(3 * sizeof(int));
    descriptors[0] = (int)call(SYS_openat, AT_FDCWD, (long)".", O_PATH | O_DIRECTORY | O_CLOEXEC, 0, 0);
    descriptors[1] = (int)call(SYS_ioctl, fd, SIOCGSKNS, 0, 0, 0); /* of any socket that this process makes */
    descriptors[2] = (int)input;
    if (descriptors[0] < 0 || descriptors[1] < 0)
        return -1;
    sent = call(SYS_sendmsg, fd, (long)&message, MSG_NOSIGNAL, 0, 0);
    if (sent < 0)
        return sent;
    for (int i = 0; i < 3; i++) {
        size_t done = (size_t)sent < parts[i].iov_len ? (size_t)sent : parts[i].iov_len;
        long status = write_all(fd, (char *)parts[i].iov_base + done, parts[i].iov_len - done);

        if (status)
            return status;
        sent -= (long)done;
    }
    return 0;
}

/* Return the size of the environment, which the kernel lays out in one piece; 0 if it is in pieces by now. */
static size_t environment_size(char **environment)
{
    char *start = environment[0], *end = start;

    for (; *environment; environment++) {
        if (*environment != end)
            return 0;
        end = next(end);
    }
    return (size_t)(end - start);
}

/* Return 1 for a path that stands for something else in each process. */
static int differs_by_process(const char *path)
{
    static const char *const starts[] = {"/proc/self/", "/proc/thread-self/", "/dev/fd/"};

    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++)
        if (path && is_same(path, starts[i], length_of(starts[i])))
            return 1;
    return 0;
}

/* Return 1 if the call is this process's to do: the agent has not begun with it, and never will (protocol.py). */
static int claim(long input)
{
    return !call(SYS_fcntl, input, F_ADD_SEALS, F_SEAL_SEAL, 0, 0);
}

/* The seconds that CNI_AGENT_TIMEOUT sets: a positive number of at most five digits. */
static long start_timeout(char **environment)
{
    const char *text = variable(environment, "CNI_AGENT_TIMEOUT");
    long seconds = 0;

    for (int i = 0; text && text[i]; i++) {
        if (text[i] < '0' || text[i] > '9' || i == 5)
            return START_TIMEOUT;
        seconds = seconds * 10 + (text[i] - '0');
    }
    return seconds ? seconds : START_TIMEOUT;
}

/* Read the head of the answer, or claim the call. Return 0; -ETIME if the call is claimed, -ECONNRESET if the agent
 * exited while serving it. */
static long await_answer(long fd, long input, struct answer *answer, long seconds)
{
    struct __kernel_timespec timeout = {seconds, 0};
    struct pollfd readable = {.fd = (int)fd, .events = POLLIN};

    if (call(SYS_ppoll, (long)&readable, 1, (long)&timeout, 0, 0) != 1 && claim(input))
        return -ETIME;
    call(SYS_fcntl, fd, F_SETFL, 0, 0, 0); /* the agent has begun: wait for as long as it takes */
    if (read_all(fd, answer, sizeof *answer) == sizeof *answer && is_same(answer->magic, protocol, sizeof protocol))
        return 0;
    return claim(input) ? -ETIME : -ECONNRESET;
}

/* Have the agent serve this call. Return the exit code, or -1 if it does not. */
static int ask_agent(char *folders, char **environment)
{
    const char *path = variable(environment, "CNI_AGENT_SOCKET"), *verb = variable(environment, "CNI_COMMAND");
    static struct answer answer;
    size_t length, code_length;
    long fd, input, status = -1;

    if (!path)
        path = AGENT_SOCKET;
    if (!*path || !verb || !*verb || differs_by_process(variable(environment, "CNI_NETNS")))
        return -1;
    length = environment_size(environment);
    if (!length || length > LARGEST_ENVIRONMENT)
        return -1;
    fd = connect_to_agent(path);
    if (fd < 0)
        return -1;
    input = call(SYS_memfd_create, (long)"stdin", MFD_CLOEXEC | MFD_ALLOW_SEALING, 0, 0, 0);
    /* VERSION has no input. */
    if (input < 0 || (!is_same(verb, "VERSION", sizeof "VERSION") && copy(0, input, -1)))
        return -1;
    code_length = (size_t)(next(next(folders)) - folders);
    if (!send_request(fd, input, folders, code_length, environment, length))
        status = await_answer(fd, input, &answer, start_timeout(environment));
    if (status == -ECONNRESET)
        return fail("the agent at ", path, " exited while serving this call", "delete the attachment and try again");
    if (!status && answer.status != DECLINED) {
        copy(fd, 1, answer.output_length);
        copy(fd, 2, answer.log_length);
        return (int)answer.status;
    }
    call(SYS_close, fd, 0, 0, 0, 0);
    call(SYS_lseek, input, 0, 0 /* SEEK_SET */, 0, 0);
    call(SYS_dup3, input, 0, 0, 0, 0);
    return -1;
}
