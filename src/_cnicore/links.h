/* Requests that make and change links (RTM_NEWLINK, linux/if_link.h). */
#ifndef CNI_LINKS_H
#define CNI_LINKS_H

#include <stdint.h>

#include "netlink.h"

/* What a link shall be. Zero, NULL and -1 mean: leave it to the kernel. */
struct cni_link {
    const char *name;
    const uint8_t *hwaddr; /* CNI_HWADDR_LEN bytes */
    const char *alias;     /* "" takes it away */
    uint32_t index;
    uint32_t mtu;
    uint32_t link;  /* the lower device */
    int64_t master; /* -1: as it is; 0: none */
    int64_t txqlen; /* -1: as it is */
    int netns;      /* descriptor of the namespace it is born in, or moved to; -1: none */
    uint32_t flags; /* IFF_, those in `change` */
    uint32_t change;
};

#define CNI_LINK_UNCHANGED {.master = -1, .txqlen = -1, .netns = -1}

/* A request about one link, up to its kind-specific part. */
size_t cni_link_begin(struct cni_messages *messages, uint16_t flags, const struct cni_link *link);

/* A kind of device that comes in pairs, and its attributes. */
struct cni_pair_kind {
    const char *name;
    uint16_t peer; /* the other end */
    uint16_t mode; /* 0: there are no modes */
    uint32_t mode_value;
    uint32_t queues; /* 0: the kernel's choice */
};

extern const struct cni_pair_kind cni_veth;
extern const struct cni_pair_kind cni_netkit; /* of layer 2, so both ends have a hardware address */

/* Two ends in one request, the peer born in its own namespace.
 * The peer's flags are not sent: IFF_UP there fails with ENOTCONN. */
void cni_link_pair(struct cni_messages *messages, const struct cni_pair_kind *kind, const struct cni_link *link,
                   const struct cni_link *peer);

/* Ask for one link, by name or by index. */
void cni_link_get(struct cni_messages *messages, const char *name, uint32_t index);

#endif
