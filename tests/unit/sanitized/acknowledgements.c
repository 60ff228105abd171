/* Reads many damaged acknowledgements, each from a piece of memory of just its size. */
#include <linux/netlink.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "netlink.h"

#define LENGTH 64

static void make(unsigned char *payload)
{
    struct nlmsgerr error = {.error = -22, .msg = {.nlmsg_len = rand() % 3 ? 16 : 20}};
    struct nlattr words = {.nla_len = sizeof words + 8, .nla_type = NLMSGERR_ATTR_MSG};

    memset(payload, 0, LENGTH);
    memcpy(payload, &error, sizeof error);
    memcpy(payload + sizeof error, &words, sizeof words);
    memcpy(payload + sizeof error + sizeof words, "refused", 8);
}

int main(void)
{
    long refused = 0, malformed = 0;

    srand(1);
    for (int round = 0; round < 200000; round++) {
        struct nlmsghdr header = {.nlmsg_flags = (unsigned short)(rand() & (NLM_F_ACK_TLVS | NLM_F_CAPPED))};
        size_t length = rand() % 2 ? LENGTH : (size_t)rand() % (LENGTH + 1);
        size_t room = 1 + (size_t)rand() % 16;
        unsigned char whole[LENGTH], *payload = malloc(length ? length : 1);
        char *words = malloc(room);
        int status;

        make(whole);
        for (int i = rand() % 4; i > 0; i--)
            whole[rand() % LENGTH] = (unsigned char)(rand() % 2 ? 255 : rand());
        memcpy(payload, whole, length);
        memset(words, 'x', room);
        status = cni_acknowledgement(&header, payload, length, words, room);
        refused += status == 22;
        malformed += status < 0;
        if (status >= 0 && !memchr(words, '\0', room))
            return 1;
        free(payload);
        free(words);
    }
    printf("%ld refused, %ld malformed\n", refused, malformed);
    return !refused || !malformed;
}
