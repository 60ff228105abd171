/* The executable that stands under every plugin's name.
 *
 * It is one program for all plugins: what it shall start is written in the last
 * TRAILER_SIZE bytes of its own file by `cni install` (cni/invoke/launcher.py), so that a
 * plain copy of it elsewhere, under any name, does the same. It execs the Python
 * interpreter, isolated and without the site module, whose start is dear. Where a
 * warm agent (cni/agent) listens, it has that serve the call instead.
 *
 * Where it can it does without a C library (FREESTANDING), whose start asks the
 * processor for its caches: in a virtual machine each such question is an exit to
 * the hypervisor, 0.5 ms in all, ten times of what is left. */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/sockios.h>
#include <linux/stat.h>
#include <linux/time_types.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>

#ifndef FREESTANDING
#include <unistd.h>
#elif !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns") /* there is no memset to call in place of a loop */
#endif

#define TRAILER_SIZE 4096
#define INSTALL_AGAIN "run 'cni install' again"

/* Isolated, without the site module (-I -S -E). Collecting garbage is no use in a process that ends before there
 * is any. The bundle is all the code in one file (cni/invoke/bundle.py), which a tree that is built in place has not.
 * Python's last folder, with its extension modules, goes first: no other one need be looked through then. */
static const char boot[] = "import gc,sys\n"
                           "gc.disable()\n"
                           "p=sys.argv[1].split(':')\n"
                           "sys.path[:]=sys.path[-1:]+p+sys.path[:-1]\n"
                           "try:\n"
                           "  import marshal,_io\n"
                           "  f=_io.FileIO(p[0]+'/cni/_bundle.'+sys.implementation.cache_tag)\n"
                           "  n=int.from_bytes(f.read(8),'little')\n"
                           "  code,index=marshal.loads(f.read(n))\n"
                           "  f.close()\n"
                           "except FileNotFoundError:pass\n"
                           "else:\n"
                           "  b={'__name__':'cni.invoke.bundle'}\n"
                           "  exec(code,b)\n"
                           "  b['install'](f.name,8+n,index,p[0])\n"
                           "try:\n"
                           "  from cni.invoke.launcher import load,start\n"
                           "  load(sys.argv[2])\n"
                           "except(ImportError,AttributeError)as e:\n" /* the packages are gone */
                           "  import json\n"
                           "  e=f'import {sys.argv[2]} from {sys.argv[1]}: {e}; '\"" INSTALL_AGAIN "\"\n"
                           "  sys.exit(print(json.dumps({'code':999,'msg':e},indent=4))or 1)\n"
                           "start(sys.argv[2],sys.argv[3:])\n";
static const char magic[] = "cni launcher 1\n"; /* 16 bytes with its NUL */

/* ---- the system, without a C library: calls return a negative errno ---- */

#if defined(FREESTANDING) && defined(__x86_64__)
static long call(long number, long a, long b, long c, long d, long e)
{
    register long fourth __asm__("r10") = d;
    register long fifth __asm__("r8") = e;

    __asm__ volatile("syscall"
                     : "+a"(number)
                     : "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
                     : "rcx", "r11", "memory");
    return number;
}

/* The kernel leaves argc, argv, the environment and the auxiliary vector on the stack. */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#elif defined(FREESTANDING) && defined(__aarch64__)
static long call(long number, long a, long b, long c, long d, long e)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;

    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
    return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tb begin\n");
#elif defined(FREESTANDING)
#error "no system calls for this processor: build with a C library"
#else
static long call(long number, long a, long b, long c, long d, long e)
{
    long result = syscall(number, a, b, c, d, e);

    return result < 0 ? -errno : result;
}
#endif

static size_t length_of(const char *text)
{
    size_t length = 0;

    while (text[length])
        length++;
    return length;
}

static void say(const char *text)
{
    (void)!call(SYS_write, 1, (long)text, (long)length_of(text), 0, 0);
}

/* As it may stand in a JSON string; bytes that are not UTF-8 are left to the reader. */
static void say_escaped(const char *text)
{
    static const char digits[] = "0123456789abcdef";

    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;
        char plain[] = {*text, '\0'};
        char escaped[] = {'\\', 'u', '0', '0', digits[c >> 4], digits[c & 15], '\0'};

        say(c < ' ' || c == '"' || c == '\\' ? escaped : plain);
    }
}

static const char *reason(long status)
{
    switch (status) {
    case ENOENT: return "No such file or directory";
    case EACCES: return "Permission denied";
    case ENOEXEC: return "Exec format error";
    case E2BIG: return "Argument list too long";
    case ECONNRESET: return "it ended while it was at it";
    default: return "the system refused";
    }
}

/* A CNI error on stdout, as a runtime expects one from a plugin. */
static int fail(const char *what, const char *on, long status, const char *advice)
{
    say("{\n    \"code\": 999,\n    \"msg\": \"");
    say(what);
    say(" ");
    say_escaped(on);
    say(": ");
    say(reason(status));
    say("; ");
    say(advice);
    say("\"\n}");
    return 1;
}

static long open_file(const char *path)
{
    return call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0);
}

/* Fill `trailer` from the file at `path`. 0, or an errno. */
static long read_trailer_at(const char *path, char trailer[TRAILER_SIZE])
{
    long fd = open_file(path);

    if (fd < 0)
        return -fd;
    if (call(SYS_lseek, fd, -TRAILER_SIZE, 2 /* SEEK_END */, 0, 0) < 0 ||
        call(SYS_read, fd, (long)trailer, TRAILER_SIZE, 0, 0) != TRAILER_SIZE)
        return ENOEXEC;
    for (size_t i = 0; i < sizeof magic; i++)
        if (trailer[i] != magic[i])
            return ENOEXEC;
    return 0;
}

/* Fill `trailer`. 0, or an errno. `name` is the path that was given to execve. It comes first, as files below /proc
 * are made for each process anew; it may lead elsewhere, to what has been put there meanwhile. */
static long read_trailer(char trailer[TRAILER_SIZE], const char *name)
{
    return name && !read_trailer_at(name, trailer) ? 0 : read_trailer_at("/proc/self/exe", trailer);
}

/* The string that follows `text`; every string ends within the trailer. */
static char *next(char *text)
{
    return text + length_of(text) + 1;
}

/* ---- the agent: what is said to it, cni/agent/protocol.py has in Python ---- */

#define AGENT_SOCKET "/run/cni/agent.sock"
#define PATIENCE 1 /* seconds that the agent has to begin; who is that late is stuck */
#define LARGEST_ENVIRONMENT (128 << 10)
#define DECLINED 256

static const char protocol[] = "cni agent 2\n\0\0\0"; /* 16 bytes */

/* The root folder, and by its mount the mount namespace: a copy of that has others. */
struct identity {
    uint32_t major, minor;
    uint64_t inode, mount;
};

/* Followed by the trailer's folders and reference and by the environment. Descriptors come with it: the current
 * folder, the network namespace, and a file with what was on stdin. */
struct request {
    char magic[16];
    struct identity root;
    uint32_t code_length, environment_length;
};

/* Followed by what goes to stdout and to stderr. */
struct answer {
    char magic[16];
    uint32_t status, output_length, log_length;
};

static int is_same(const void *a, const void *b, size_t length)
{
    const char *left = a, *right = b;

    while (length && *left++ == *right++)
        length--;
    return !length;
}

static const char *variable(char **environment, const char *name)
{
    size_t length = length_of(name);

    for (; *environment; environment++)
        if (is_same(*environment, name, length) && (*environment)[length] == '=')
            return *environment + length + 1;
    return NULL;
}

/* Everything, or what there is before the end. */
static long read_all(long fd, void *data, size_t length)
{
    size_t done = 0;

    while (done < length) {
        long count = call(SYS_read, fd, (long)data + (long)done, (long)(length - done), 0, 0);

        if (count == 0 || (count < 0 && count != -EINTR))
            break;
        if (count > 0)
            done += (size_t)count;
    }
    return (long)done;
}

static long write_all(long fd, const void *data, size_t length)
{
    size_t done = 0;

    while (done < length) {
        long count = call(SYS_write, fd, (long)data + (long)done, (long)(length - done), 0, 0);

        if (count < 0 && count != -EINTR)
            return count;
        if (count > 0)
            done += (size_t)count;
    }
    return 0;
}

static char passing[32 << 10];

/* Copy `length` bytes, or with -1 all there are. 0, or a negative errno. */
static long copy(long from, long to, long length)
{
    while (length) {
        size_t most = length < 0 || (size_t)length > sizeof passing ? sizeof passing : (size_t)length;
        long count = call(SYS_read, from, (long)passing, (long)most, 0, 0);

        if (count == -EINTR)
            continue;
        if (count <= 0)
            return count < 0 || length > 0 ? -EIO : 0;
        if (write_all(to, passing, (size_t)count))
            to = -1; /* nobody reads it any more; what follows has to be read all the same */
        if (length > 0)
            length -= count;
    }
    return 0;
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

/* A connection to an agent of this user's or root's. Negative without one. */
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
    /* An agent without room for the connection or for the request is too busy to be waited for. Below 3 are what the
     * caller left closed. */
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
    descriptors[1] = (int)call(SYS_ioctl, fd, SIOCGSKNS, 0, 0, 0); /* that of any socket made here */
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

/* What the kernel laid out in one piece. 0 if it is not, any more. */
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

/* Paths by which each process sees something else. */
static int is_own_affair(const char *path)
{
    static const char *const starts[] = {"/proc/self/", "/proc/thread-self/", "/dev/fd/"};

    for (size_t i = 0; i < sizeof starts / sizeof *starts; i++)
        if (path && is_same(path, starts[i], length_of(starts[i])))
            return 1;
    return 0;
}

/* Whether the call is this process's to do: the agent never has begun with it, nor ever will (protocol.py). */
static int claim(long input)
{
    return !call(SYS_fcntl, input, F_ADD_SEALS, F_SEAL_SEAL, 0, 0);
}

/* Read the head of the answer, or claim the call. 0, or a negative number without an answer. */
static long await_answer(long fd, long input, struct answer *answer)
{
    struct __kernel_timespec patience = {PATIENCE, 0};
    struct pollfd news = {.fd = (int)fd, .events = POLLIN};

    if (call(SYS_ppoll, (long)&news, 1, (long)&patience, 0, 0) != 1 && claim(input))
        return -ETIME;
    call(SYS_fcntl, fd, F_SETFL, 0, 0, 0); /* it is at work: however long that takes */
    if (read_all(fd, answer, sizeof *answer) == sizeof *answer && is_same(answer->magic, protocol, sizeof protocol))
        return 0;
    return claim(input) ? -ETIME : -ECONNRESET;
}

/* Have the agent serve this call. The exit code, or -1 if it does not. */
static int ask_agent(char *folders, char **environment)
{
    const char *path = variable(environment, "CNI_AGENT_SOCKET"), *verb = variable(environment, "CNI_COMMAND");
    static struct answer answer;
    size_t length, code_length;
    long fd, input, status = -1;

    if (!path)
        path = AGENT_SOCKET;
    if (!*path || !verb || !*verb || is_own_affair(variable(environment, "CNI_NETNS")))
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
        status = await_answer(fd, input, &answer);
    if (status == -ECONNRESET)
        return fail("get an answer from the agent at", path, ECONNRESET, "delete the attachment and try again");
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

static const char *executed_name(char **environment)
{
    Elf64_auxv_t *vector;

    while (*environment)
        environment++;
    for (vector = (Elf64_auxv_t *)(environment + 1); vector->a_type != AT_NULL; vector++)
        if (vector->a_type == AT_EXECFN)
            return (const char *)vector->a_un.a_val;
    return NULL;
}

static int launch(int argc, char **argv, char **environment)
{
    static char trailer[TRAILER_SIZE + 4]; /* four NULs close the last strings */
    const char *name = sizeof(void *) == 8 ? executed_name(environment) : NULL;
    long status = read_trailer(trailer, name);
    char *interpreter, *folders, *reference, *arguments[argc + 10];
    int served;

    if (status)
        return fail("read what to start from", argc > 0 ? argv[0] : "this program", status, INSTALL_AGAIN);
    interpreter = trailer + sizeof magic;
    folders = next(interpreter);
    reference = next(folders);
    served = argc > 1 ? -1 : ask_agent(folders, environment);
    if (served >= 0)
        return served;
    arguments[0] = interpreter;
    arguments[1] = "-I";
    arguments[2] = "-S";
    arguments[3] = "-E";
    arguments[4] = "-c";
    arguments[5] = (char *)boot;
    arguments[6] = folders;
    arguments[7] = reference;
    for (int i = 1; i < argc; i++)
        arguments[7 + i] = argv[i];
    arguments[argc > 1 ? 7 + argc : 8] = NULL;
    status = -call(SYS_execve, (long)interpreter, (long)arguments, (long)environment, 0, 0);
    return fail("start the interpreter", interpreter, status, INSTALL_AGAIN);
}

#ifdef FREESTANDING
__attribute__((noreturn, used)) static void begin(long *stack)
{
    int argc = (int)stack[0];
    char **argv = (char **)(stack + 1);

    for (;;)
        call(SYS_exit_group, launch(argc, argv, argv + argc + 1), 0, 0, 0, 0);
}
#else
int main(int argc, char **argv, char **environment)
{
    return launch(argc, argv, environment);
}
#endif
