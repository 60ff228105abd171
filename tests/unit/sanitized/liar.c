/* Preloaded: a kernel whose answers are damaged on their way, one in three. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>

ssize_t recvfrom(int fd, void *data, size_t room, int flags, struct sockaddr *from, socklen_t *from_length)
{
    static ssize_t (*real)(int, void *, size_t, int, struct sockaddr *, socklen_t *);
    static const unsigned char likely[] = {0, 1, 3, 4, 5, 15, 16, 17, 127, 128, 255};
    unsigned char *bytes = data;
    ssize_t length;

    if (!real)
        real = (ssize_t(*)(int, void *, size_t, int, struct sockaddr *, socklen_t *))dlsym(RTLD_NEXT, "recvfrom");
    length = real(fd, data, room, flags, from, from_length);
    if (length <= 0 || rand() % 3)
        return length;
    for (int i = rand() % 4; i > 0; i--)
        bytes[(rand() % length) & (rand() % 4 ? ~3L : ~0L)] = likely[(size_t)rand() % sizeof likely];
    return rand() % 2 ? length : rand() % (length + 1);
}
