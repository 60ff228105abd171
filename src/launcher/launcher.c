/* The executable that stands under every plugin's name.
 *
 * It is one program for all plugins: what to start is written in the last
 * TRAILER_SIZE bytes of its own file by `cni install` (cni/invoke/launcher.py), so
 * that a plain copy of it elsewhere, under any name, does the same. It execs the
 * Python interpreter, isolated and without the site module, whose start is slow.
 * Where a warm agent (cni/agent) listens, it has the agent serve the call instead. */
#include "system.h"

#include <elf.h>

#include "agent.c"

#define TRAILER_SIZE 4096
#define INSTALL_AGAIN "run 'cni install' again"

static const char boot[] = BOOT;                /* boot.py, as a C string (setup.py) */
static const char magic[] = "cni launcher 1\n"; /* 16 bytes with its NUL */

/* Fill `trailer` from the file at `path`. Return 0, or an errno. */
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

/* Fill `trailer`. Return 0, or an errno.
 *
 * `name` is the path that execve was given. It comes first, since /proc is slower: its files are made anew for each
 * process. It may lead to another file by now, which has replaced the one that was started. */
static long read_trailer(char trailer[TRAILER_SIZE], const char *name)
{
    return name && !read_trailer_at(name, trailer) ? 0 : read_trailer_at("/proc/self/exe", trailer);
}

/* Return the path that execve was given (AT_EXECFN), NULL if the kernel does not tell. */
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
    static char trailer[TRAILER_SIZE + 4]; /* the four NULs end the last strings, whatever the trailer holds */
    const char *name = sizeof(void *) == 8 ? executed_name(environment) : NULL;
    long status = read_trailer(trailer, name);
    char *interpreter, *folders, *reference, *arguments[argc + 10];
    int served;

    if (status)
        return fail("read the launcher trailer of ", argc > 0 ? argv[0] : "this program", reason(status),
                    INSTALL_AGAIN);
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
    return fail("start the interpreter ", interpreter, reason(status), INSTALL_AGAIN);
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
