#include "links.h"

#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <sys/socket.h>

#include "hwaddr.h"

/* linux/if_link.h of Linux 6.7 */
enum { NETKIT_PEER_INFO = 1, NETKIT_MODE = 5 };
enum { NETKIT_MODE_L2 = 0 };

const struct cni_pair_kind cni_veth = {.name = "veth", .peer = VETH_INFO_PEER, .queues = 1};
const struct cni_pair_kind cni_netkit = {
    .name = "netkit", .peer = NETKIT_PEER_INFO, .mode = NETKIT_MODE, .mode_value = NETKIT_MODE_L2};

static struct ifinfomsg header(const struct cni_link *link)
{
    return (struct ifinfomsg){
        .ifi_family = AF_UNSPEC, .ifi_index = (int)link->index, .ifi_flags = link->flags, .ifi_change = link->change};
}

static void attributes(struct cni_messages *messages, const struct cni_link *link)
{
    if (link->name)
        cni_attribute_text(messages, IFLA_IFNAME, link->name);
    if (link->hwaddr)
        cni_attribute(messages, IFLA_ADDRESS, link->hwaddr, CNI_HWADDR_LEN);
    if (link->mtu)
        cni_attribute_u32(messages, IFLA_MTU, link->mtu);
    if (link->link)
        cni_attribute_u32(messages, IFLA_LINK, link->link);
    if (link->master >= 0)
        cni_attribute_u32(messages, IFLA_MASTER, (uint32_t)link->master);
    if (link->txqlen >= 0)
        cni_attribute_u32(messages, IFLA_TXQLEN, (uint32_t)link->txqlen);
    if (link->alias)
        cni_attribute_text(messages, IFLA_IFALIAS, link->alias);
    if (link->netns != -1) /* a closed one must fail, not be taken for none */
        cni_attribute_u32(messages, IFLA_NET_NS_FD, (uint32_t)link->netns);
}

size_t cni_link_begin(struct cni_messages *messages, uint16_t flags, const struct cni_link *link)
{
    struct ifinfomsg info = header(link);
    size_t start = cni_message_begin(messages, RTM_NEWLINK, flags | NLM_F_ACK, &info, sizeof info);

    attributes(messages, link);
    return start;
}

/* By default Linux makes as many for each end of a veth as there can be processors, each with files of its own below
 * /sys: a third of the time that a pair takes with two of them. Only XDP and GRO on the veth itself use more than one. */
static void queues(struct cni_messages *messages, const struct cni_pair_kind *kind)
{
    if (kind->queues) {
        cni_attribute_u32(messages, IFLA_NUM_TX_QUEUES, kind->queues);
        cni_attribute_u32(messages, IFLA_NUM_RX_QUEUES, kind->queues);
    }
}

void cni_link_pair(struct cni_messages *messages, const struct cni_pair_kind *kind, const struct cni_link *link,
                   const struct cni_link *peer)
{
    size_t start = cni_link_begin(messages, NLM_F_CREATE | NLM_F_EXCL, link);
    size_t info = cni_nest_begin(messages, IFLA_LINKINFO);
    struct ifinfomsg peer_info = {.ifi_family = AF_UNSPEC};
    size_t data, nest;

    cni_attribute_text(messages, IFLA_INFO_KIND, kind->name);
    data = cni_nest_begin(messages, IFLA_INFO_DATA);
    if (kind->mode)
        cni_attribute_u32(messages, kind->mode, kind->mode_value);
    nest = cni_nest_begin(messages, kind->peer);
    cni_append(messages, &peer_info, sizeof peer_info);
    attributes(messages, peer);
    queues(messages, kind);
    cni_nest_end(messages, nest);
    cni_nest_end(messages, data);
    cni_nest_end(messages, info);
    queues(messages, kind);
    cni_message_end(messages, start);
}

void cni_link_get(struct cni_messages *messages, const char *name, uint32_t index)
{
    struct ifinfomsg info = {.ifi_family = AF_UNSPEC, .ifi_index = (int)index};
    size_t start = cni_message_begin(messages, RTM_GETLINK, 0, &info, sizeof info);

    if (name)
        cni_attribute_text(messages, IFLA_IFNAME, name);
    /* Statistics are most of what there is about a link, and nobody here asks for them. */
    cni_attribute_u32(messages, IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    cni_message_end(messages, start);
}
