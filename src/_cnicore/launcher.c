/* The executable that stands under every plugin's name.
 *
 * It is one program for all plugins: what it shall start is written in the last
 * TRAILER_SIZE bytes of its own file by `cni install` (cni/launcher.py), so that a
 * plain copy of it elsewhere, under any name, does the same. It execs the Python
 * interpreter, isolated and without the site module, whose start is dear.
 *
 * Where it can it does without a C library (FREESTANDING), whose start asks the
 * processor for its caches: in a virtual machine each such question is an exit to
 * the hypervisor, 0.5 ms in all, ten times of what is left. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <sys/syscall.h>

#ifndef FREESTANDING
#include <unistd.h>
#endif

#define TRAILER_SIZE 4096
#define INSTALL_AGAIN "run 'cni install' again"

/* Isolated, without the site module (-I -S -E). Collecting garbage is no use in a process that ends before there
 * is any. The bundle is all the code in one file (cni/bundle.py), which a tree that is built in place has not. */
static const char boot[] = "import gc,sys\n"
                           "gc.disable()\n"
                           "sys.path[:0]=sys.argv[1].split(':')\n"
                           "try:\n"
                           "  import marshal,_io\n"
                           "  f=_io.FileIO(sys.path[0]+'/cni/_bundle.'+sys.implementation.cache_tag)\n"
                           "  code,modules=marshal.loads(f.readall())\n"
                           "except FileNotFoundError:pass\n"
                           "else:\n"
                           "  b={'__name__':'cni.bundle'}\n"
                           "  exec(code,b)\n"
                           "  b['install'](modules,sys.path[0])\n"
                           "try:\n"
                           "  from cni.launcher import load,start\n"
                           "  load(sys.argv[2])\n"
                           "except(ImportError,AttributeError)as e:\n" /* the packages are gone */
                           "  import json\n"
                           "  e=f'import {sys.argv[2]} from {sys.argv[1]}: {e}; '\"" INSTALL_AGAIN "\"\n"
                           "  sys.exit(print(json.dumps({'code':999,'msg':e},indent=4))or 1)\n"
                           "start(sys.argv[2],sys.argv[3:])\n";
static const char magic[] = "cni launcher 1\n"; /* 16 bytes with its NUL */

/* ---- the system, without a C library: calls return a negative errno ---- */

#if defined(FREESTANDING) && defined(__x86_64__)
static long call(long number, long a, long b, long c, long d)
{
    register long fourth __asm__("r10") = d;

    __asm__ volatile("syscall" : "+a"(number) : "D"(a), "S"(b), "d"(c), "r"(fourth) : "rcx", "r11", "memory");
    return number;
}

/* The kernel leaves argc, argv, the environment and the auxiliary vector on the stack. */
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall begin\n");
#elif defined(FREESTANDING) && defined(__aarch64__)
static long call(long number, long a, long b, long c, long d)
{
    register long x8 __asm__("x8") = number;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;

    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
    return x0;
}

__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x30, #0\n\tmov x0, sp\n\tb begin\n");
#elif defined(FREESTANDING)
#error "no system calls for this processor: build with a C library"
#else
static long call(long number, long a, long b, long c, long d)
{
    long result = syscall(number, a, b, c, d);

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
    (void)!call(SYS_write, 1, (long)text, (long)length_of(text), 0);
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
    default: return "the system refused";
    }
}

/* A CNI error on stdout, as a runtime expects one from a plugin. */
static int fail(const char *what, const char *on, long status)
{
    say("{\n    \"code\": 999,\n    \"msg\": \"");
    say(what);
    say(" ");
    say_escaped(on);
    say(": ");
    say(reason(status));
    say("; " INSTALL_AGAIN "\"\n}");
    return 1;
}

static long open_file(const char *path)
{
    return call(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0);
}

/* `name` is the path that was given to execve: for where there is no /proc. */
static long open_self(const char *name)
{
    long fd = open_file("/proc/self/exe");

    return fd < 0 && name ? open_file(name) : fd;
}

/* Fill `trailer`. 0, or an errno. */
static long read_trailer(char trailer[TRAILER_SIZE], const char *name)
{
    long fd = open_self(name);

    if (fd < 0)
        return -fd;
    if (call(SYS_lseek, fd, -TRAILER_SIZE, 2 /* SEEK_END */, 0) < 0 ||
        call(SYS_read, fd, (long)trailer, TRAILER_SIZE, 0) != TRAILER_SIZE)
        return ENOEXEC;
    for (size_t i = 0; i < sizeof magic; i++)
        if (trailer[i] != magic[i])
            return ENOEXEC;
    return 0;
}

/* The string that follows `text`; every string ends within the trailer. */
static char *next(char *text)
{
    return text + length_of(text) + 1;
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

    if (status)
        return fail("read what to start from", argc > 0 ? argv[0] : "this program", status);
    interpreter = trailer + sizeof magic;
    folders = next(interpreter);
    reference = next(folders);
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
    return fail("start the interpreter", interpreter,
                -call(SYS_execve, (long)interpreter, (long)arguments, (long)environment, 0));
}

#ifdef FREESTANDING
__attribute__((noreturn, used)) static void begin(long *stack)
{
    int argc = (int)stack[0];
    char **argv = (char **)(stack + 1);

    for (;;)
        call(SYS_exit_group, launch(argc, argv, argv + argc + 1), 0, 0, 0);
}
#else
int main(int argc, char **argv, char **environment)
{
    return launch(argc, argv, environment);
}
#endif
