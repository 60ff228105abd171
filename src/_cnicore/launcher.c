/* The executable that stands under every plugin's name.
 *
 * It is one program for all plugins: what it shall start is written in the last
 * TRAILER_SIZE bytes of its own file by `cni install` (cni/launcher.py), so that a
 * plain copy of it elsewhere, under any name, does the same. It execs the Python
 * interpreter, isolated and without the site module, whose start is dear. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* As it may stand in a JSON string; bytes that are not UTF-8 are left to the reader. */
static void print_escaped(const char *text)
{
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (c < ' ' || c == '"' || c == '\\')
            printf("\\u%04x", c);
        else
            putchar(c);
    }
}

/* A CNI error on stdout, as a runtime expects one from a plugin. */
static int fail(const char *what, const char *on, int status)
{
    printf("{\n    \"code\": 999,\n    \"msg\": \"%s ", what);
    print_escaped(on);
    printf(": %s; " INSTALL_AGAIN "\"\n}", strerror(status));
    return 1;
}

static int open_self(void)
{
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);

    if (fd >= 0)
        return fd;
    /* No /proc here: the path that was given to execve. */
    return open((const char *)getauxval(AT_EXECFN), O_RDONLY | O_CLOEXEC);
}

/* Fill `trailer`, which gets a closing NUL. 0, or an errno. */
static int read_trailer(char trailer[TRAILER_SIZE + 1])
{
    int fd = open_self();
    struct stat status;
    ssize_t length;

    if (fd < 0)
        return errno;
    if (fstat(fd, &status) < 0)
        return errno;
    length = pread(fd, trailer, TRAILER_SIZE, status.st_size - TRAILER_SIZE);
    close(fd);
    trailer[TRAILER_SIZE] = '\0';
    return length == TRAILER_SIZE && memcmp(trailer, magic, sizeof magic) == 0 ? 0 : ENOEXEC;
}

/* The string that follows `text`; every string ends within the trailer. */
static char *next(char *text)
{
    return text + strlen(text) + 1;
}

int main(int argc, char **argv)
{
    static char trailer[TRAILER_SIZE + 4]; /* four NULs close the last strings */
    int status = read_trailer(trailer);
    char *interpreter, *folders, *reference, **arguments;

    if (status)
        return fail("read what to start from", argv[0] ? argv[0] : "this program", status);
    interpreter = trailer + sizeof magic;
    folders = next(interpreter);
    reference = next(folders);
    arguments = calloc((size_t)argc + 10, sizeof *arguments);
    if (!arguments)
        return fail("start", interpreter, ENOMEM);
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
    execv(interpreter, arguments);
    return fail("start the interpreter", interpreter, errno);
}
