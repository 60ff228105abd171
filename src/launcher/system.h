/* The launcher's small C library: system calls, text, reading and writing, and the
 * error that a runtime is given.
 *
 * Where possible the launcher is linked without a C library (FREESTANDING). The
 * start-up code of one queries the processor's caches: in a virtual machine each
 * query is an exit to the hypervisor, 0.5 ms in all, ten times the rest of the
 * launcher's time. */
#ifndef CNI_LAUNCHER_SYSTEM_H
#define CNI_LAUNCHER_SYSTEM_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/syscall.h>

#ifndef FREESTANDING
#include <unistd.h>
#elif !defined(__clang__)
#pragma GCC optimize("no-tree-loop-distribute-patterns") /* a loop must not become a call of memset: there is none */
#endif

/* ---- system calls: a negative errno is a failure ---- */

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

/* ---- text and bytes ---- */

static size_t length_of(const char *text)
{
    size_t length = 0;

    while (text[length])
        length++;
    return length;
}

static int is_same(const void *a, const void *b, size_t length)
{
    const char *left = a, *right = b;

    while (length && *left++ == *right++)
        length--;
    return !length;
}

/* Return the string that follows `text` in memory. */
static char *next(char *text)
{
    return text + length_of(text) + 1;
}

/* ---- reading and writing ---- */

static long open_file(const char *path)
{
    return call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0);
}

/* Read up to `length` bytes; return how many there were before the end of the file or a failure. */
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

static char copy_buffer[32 << 10];

/* Copy `length` bytes, or all there are if it is -1. Return 0, or a negative errno. */
static long copy(long from, long to, long length)
{
    while (length) {
        size_t most = length < 0 || (size_t)length > sizeof copy_buffer ? sizeof copy_buffer : (size_t)length;
        long count = call(SYS_read, from, (long)copy_buffer, (long)most, 0, 0);

        if (count == -EINTR)
            continue;
        if (count <= 0)
            return count < 0 || length > 0 ? -EIO : 0;
        if (write_all(to, copy_buffer, (size_t)count))
            to = -1; /* the reader is gone; the rest has to be read all the same */
        if (length > 0)
            length -= count;
    }
    return 0;
}

/* ---- errors ---- */

static void say(const char *text)
{
    (void)!call(SYS_write, 1, (long)text, (long)length_of(text), 0, 0);
}

/* Print `text` escaped for a JSON string. Bytes that are not UTF-8 are left to the reader. */
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

/* Return the end of a message that tells why a system call failed. */
static const char *reason(long status)
{
    switch (status) {
    case ENOENT: return ": No such file or directory";
    case EACCES: return ": Permission denied";
    case ENOEXEC: return ": Exec format error";
    case E2BIG: return ": Argument list too long";
    default: return ": the system call failed";
    }
}

/* Print a CNI error on stdout, as runtimes expect it from a plugin: "BEFORE SUBJECT AFTER; ADVICE". Return the exit
 * code. */
static int fail(const char *before, const char *subject, const char *after, const char *advice)
{
    say("{\n    \"code\": 999,\n    \"msg\": \"");
    say(before);
    say_escaped(subject);
    say(after);
    say("; ");
    say(advice);
    say("\"\n}");
    return 1;
}

#endif
