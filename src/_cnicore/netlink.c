#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "netns.h"

/* As many requests a sendmsg as leave room for their answers in a receive buffer
 * of default size: one that overflows loses acknowledgements. */
#define REQUESTS_AT_ONCE 64
/* The kernel makes a dump's messages as large as the reader's buffer, up to 32 KiB. */
#define ROOM 65536
#define DUMP_TRIES 20

/* ---- building ---------------------------------------------------------- */

void cni_messages_free(struct cni_messages *messages)
{
    free(messages->data);
    memset(messages, 0, sizeof *messages);
}

void cni_messages_clear(struct cni_messages *messages)
{
    messages->length = 0;
    messages->count = 0;
    messages->status = 0;
}

static int reserve(struct cni_messages *messages, size_t more)
{
    size_t capacity = messages->capacity ? messages->capacity : 1024;
    unsigned char *data;

    if (messages->status)
        return -1;
    if (more <= messages->capacity - messages->length)
        return 0;
    while (capacity - messages->length < more)
        capacity *= 2;
    data = realloc(messages->data, capacity);
    if (!data) {
        messages->status = ENOMEM;
        return -1;
    }
    messages->data = data;
    messages->capacity = capacity;
    return 0;
}

/* Append with the padding to four bytes that netlink wants. */
void cni_append(struct cni_messages *messages, const void *data, size_t length)
{
    size_t padded = NLMSG_ALIGN(length);

    if (reserve(messages, padded) < 0)
        return;
    if (length)
        memcpy(messages->data + messages->length, data, length);
    memset(messages->data + messages->length + length, 0, padded - length);
    messages->length += padded;
}

size_t cni_message_begin(struct cni_messages *messages, uint16_t type, uint16_t flags, const void *header,
                         size_t length)
{
    size_t start = messages->length;
    struct nlmsghdr message = {.nlmsg_type = type, .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags)};

    cni_append(messages, &message, sizeof message);
    cni_append(messages, header, length);
    return start;
}

void cni_message_end(struct cni_messages *messages, size_t start)
{
    uint32_t length;

    if (messages->status)
        return;
    length = (uint32_t)(messages->length - start);
    memcpy(messages->data + start + offsetof(struct nlmsghdr, nlmsg_len), &length, sizeof length);
    messages->count++;
}

static void attribute_header(struct cni_messages *messages, uint16_t type, size_t length)
{
    struct nlattr header = {.nla_len = (uint16_t)(sizeof header + length), .nla_type = type};

    if (sizeof header + length > UINT16_MAX) {
        messages->status = EMSGSIZE;
        return;
    }
    cni_append(messages, &header, sizeof header);
}

void cni_attribute(struct cni_messages *messages, uint16_t type, const void *data, size_t length)
{
    attribute_header(messages, type, length);
    cni_append(messages, data, length);
}

void cni_attribute_u8(struct cni_messages *messages, uint16_t type, uint8_t value)
{
    cni_attribute(messages, type, &value, sizeof value);
}

void cni_attribute_u16(struct cni_messages *messages, uint16_t type, uint16_t value)
{
    cni_attribute(messages, type, &value, sizeof value);
}

void cni_attribute_u32(struct cni_messages *messages, uint16_t type, uint32_t value)
{
    cni_attribute(messages, type, &value, sizeof value);
}

void cni_attribute_text(struct cni_messages *messages, uint16_t type, const char *text)
{
    cni_attribute(messages, type, text, strlen(text) + 1);
}

size_t cni_nest_begin(struct cni_messages *messages, uint16_t type)
{
    size_t start = messages->length;

    attribute_header(messages, type | NLA_F_NESTED, 0);
    return start;
}

void cni_nest_end(struct cni_messages *messages, size_t start)
{
    size_t length = messages->length - start;
    uint16_t field = (uint16_t)length;

    if (messages->status)
        return;
    if (length > UINT16_MAX) {
        messages->status = EMSGSIZE;
        return;
    }
    memcpy(messages->data + start + offsetof(struct nlattr, nla_len), &field, sizeof field);
}

/* ---- reading ----------------------------------------------------------- */

int cni_next_message(const unsigned char *data, size_t length, size_t *offset, struct nlmsghdr *header,
                     const unsigned char **payload, size_t *payload_length)
{
    size_t left = length - *offset;

    if (*offset >= length)
        return 0;
    if (left < sizeof *header)
        return -1;
    memcpy(header, data + *offset, sizeof *header);
    if (header->nlmsg_len < sizeof *header || header->nlmsg_len > left)
        return -1;
    *payload = data + *offset + sizeof *header;
    *payload_length = header->nlmsg_len - sizeof *header;
    *offset += NLMSG_ALIGN((size_t)header->nlmsg_len);
    return 1;
}

int cni_next_attribute(const unsigned char *data, size_t length, size_t *offset, uint16_t *type,
                       const unsigned char **payload, size_t *payload_length)
{
    struct nlattr header;
    size_t left = length - *offset;

    if (*offset >= length)
        return 0;
    if (left < sizeof header)
        return -1;
    memcpy(&header, data + *offset, sizeof header);
    if (header.nla_len < sizeof header || header.nla_len > left)
        return -1;
    *type = (uint16_t)(header.nla_type & NLA_TYPE_MASK);
    *payload = data + *offset + sizeof header;
    *payload_length = header.nla_len - sizeof header;
    *offset += NLMSG_ALIGN((size_t)header.nla_len); /* the same four bytes */
    return 1;
}

int cni_acknowledgement(const struct nlmsghdr *header, const unsigned char *payload, size_t length, char *words,
                        size_t room)
{
    struct nlmsgerr message;
    const unsigned char *value;
    size_t offset = 0, skip, value_length;
    uint16_t type;
    int more;

    words[0] = '\0';
    if (length < sizeof message)
        return -1;
    memcpy(&message, payload, sizeof message);
    if (message.error > 0)
        return -1;
    if (!(header->nlmsg_flags & NLM_F_ACK_TLVS))
        return -message.error;
    /* The request stands between the code and the words, unless it was capped. */
    skip = sizeof message;
    if (!(header->nlmsg_flags & NLM_F_CAPPED)) {
        if (message.msg.nlmsg_len < sizeof message.msg)
            return -1;
        skip += NLMSG_ALIGN((size_t)message.msg.nlmsg_len) - sizeof message.msg;
    }
    if (skip > length)
        return -1;
    while ((more = cni_next_attribute(payload + skip, length - skip, &offset, &type, &value, &value_length)) > 0) {
        if (type != NLMSGERR_ATTR_MSG || !room)
            continue;
        if (value_length >= room)
            value_length = room - 1;
        memcpy(words, value, value_length);
        words[value_length] = '\0';
    }
    return more < 0 ? -1 : -message.error;
}

/* ---- the socket -------------------------------------------------------- */

static void allow(int fd, int option)
{
    int on = 1;

    /* Older kernels lack some; then there are fewer words in an error, no more. */
    (void)!setsockopt(fd, SOL_NETLINK, option, &on, sizeof on);
}

int cni_netlink_open(struct cni_netlink *netlink, int netns, struct cni_error *err)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};

    netlink->fd = cni_netns_socket(netns, AF_NETLINK, SOCK_RAW, NETLINK_ROUTE, err);
    if (netlink->fd < 0)
        return -1;
    allow(netlink->fd, NETLINK_EXT_ACK);
    allow(netlink->fd, NETLINK_CAP_ACK);
    allow(netlink->fd, NETLINK_GET_STRICT_CHK);
    if (bind(netlink->fd, (struct sockaddr *)&address, sizeof address) < 0) {
        cni_fail(err, errno, "bind a netlink socket");
        close(netlink->fd);
        netlink->fd = -1;
        return -1;
    }
    pthread_mutex_init(&netlink->lock, NULL);
    netlink->sequence = 1;
    return 0;
}

void cni_netlink_close(struct cni_netlink *netlink)
{
    if (netlink->fd < 0)
        return;
    close(netlink->fd);
    netlink->fd = -1;
    pthread_mutex_destroy(&netlink->lock);
}

int cni_netlink_subscribe(struct cni_netlink *netlink, uint32_t group, struct cni_error *err)
{
    if (setsockopt(netlink->fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
        return cni_fail(err, errno, "subscribe to the netlink group %u", group);
    return 0;
}

static int send_all(struct cni_netlink *netlink, const unsigned char *data, size_t length, struct cni_error *err)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    ssize_t sent;

    do
        sent = sendto(netlink->fd, data, length, 0, (struct sockaddr *)&kernel, sizeof kernel);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return cni_fail(err, errno, "send a netlink request of %zu bytes", length);
    if ((size_t)sent != length)
        return cni_fail(err, EIO, "send a netlink request: %zd of %zu bytes left", sent, length);
    return 0;
}

/* Append one datagram from the kernel to `answers`; returns its length. */
static ssize_t receive(struct cni_netlink *netlink, struct cni_messages *answers, struct cni_error *err)
{
    struct sockaddr_nl from;
    socklen_t from_length;
    ssize_t length;

    if (reserve(answers, ROOM) < 0)
        return cni_fail(err, answers->status, "read a netlink answer");
    do {
        from_length = sizeof from;
        length = recvfrom(netlink->fd, answers->data + answers->length, ROOM, MSG_TRUNC, (struct sockaddr *)&from,
                          &from_length);
    } while ((length < 0 && errno == EINTR) || (length >= 0 && from.nl_pid != 0)); /* pid 0: the kernel */
    if (length < 0)
        return cni_fail(err, errno, "read a netlink answer");
    if (length > ROOM)
        return cni_fail(err, EMSGSIZE, "read a netlink answer: %zd bytes are more than fit", length);
    answers->length += NLMSG_ALIGN((size_t)length);
    return length;
}

static int malformed(struct cni_error *err)
{
    return cni_fail(err, EBADMSG, "read a netlink answer: it is malformed");
}

/* Number the requests from the socket's sequence, `count` of them or fewer, and
 * say in `*end` where the last one ends. */
static uint32_t number(struct cni_netlink *netlink, unsigned char *data, size_t length, size_t *end)
{
    const unsigned char *payload;
    size_t payload_length, start = *end;
    struct nlmsghdr header;
    uint32_t count = 0;

    while (count < REQUESTS_AT_ONCE && cni_next_message(data, length, end, &header, &payload, &payload_length) > 0) {
        header.nlmsg_seq = netlink->sequence++;
        memcpy(data + start, &header, sizeof header);
        start = *end;
        count++;
    }
    return count;
}

/* Read until each of the `count` requests from sequence number `first` has been
 * acknowledged. What belongs to none of them is dropped. */
static int gather(struct cni_netlink *netlink, uint32_t first, uint32_t count, struct cni_messages *answers,
                  struct cni_error *err)
{
    const unsigned char *payload;
    size_t payload_length;
    struct nlmsghdr header;
    uint32_t acknowledged = 0;
    int more;

    while (acknowledged < count) {
        size_t start = answers->length, offset = 0;
        ssize_t length = receive(netlink, answers, err);

        if (length < 0)
            return -1;
        while ((more = cni_next_message(answers->data + start, (size_t)length, &offset, &header, &payload,
                                        &payload_length)) > 0)
            if (header.nlmsg_type == NLMSG_ERROR && header.nlmsg_seq - first < count)
                acknowledged++;
        if (more < 0)
            return malformed(err);
    }
    return 0;
}

static int transact(struct cni_netlink *netlink, struct cni_messages *requests, struct cni_messages *answers,
                    uint32_t *first, struct cni_error *err)
{
    size_t end = 0;

    *first = netlink->sequence;
    while (end < requests->length) {
        size_t start = end;
        uint32_t sequence = netlink->sequence;
        uint32_t count = number(netlink, requests->data, requests->length, &end);

        if (send_all(netlink, requests->data + start, end - start, err) < 0 ||
            gather(netlink, sequence, count, answers, err) < 0)
            return -1;
    }
    return 0;
}

int cni_netlink_transact(struct cni_netlink *netlink, struct cni_messages *requests, struct cni_messages *answers,
                         uint32_t *first, struct cni_error *err)
{
    int result;

    if (requests->status)
        return cni_fail(err, requests->status, "build a netlink request");
    pthread_mutex_lock(&netlink->lock);
    result = transact(netlink, requests, answers, first, err);
    pthread_mutex_unlock(&netlink->lock);
    return result;
}

/* One attempt at a dump. 1: the list changed meanwhile. */
static int dump(struct cni_netlink *netlink, struct cni_messages *request, struct cni_messages *answers,
                struct cni_error *err)
{
    const unsigned char *payload;
    size_t payload_length, end = 0;
    struct nlmsghdr header;
    char words[128];
    uint32_t sequence = netlink->sequence;
    int more, status, interrupted = 0;

    number(netlink, request->data, request->length, &end);
    if (send_all(netlink, request->data, request->length, err) < 0)
        return -1;
    for (;;) {
        size_t start = answers->length, offset = 0;
        ssize_t length = receive(netlink, answers, err);

        if (length < 0)
            return -1;
        while ((more = cni_next_message(answers->data + start, (size_t)length, &offset, &header, &payload,
                                        &payload_length)) > 0) {
            if (header.nlmsg_seq != sequence)
                continue;
            interrupted |= (header.nlmsg_flags & NLM_F_DUMP_INTR) != 0;
            if (header.nlmsg_type == NLMSG_ERROR) {
                status = cni_acknowledgement(&header, payload, payload_length, words, sizeof words);
                return status < 0 ? malformed(err) : cni_fail(err, status, "%s", words);
            }
            if (header.nlmsg_type != NLMSG_DONE)
                continue;
            if (payload_length < sizeof status)
                return malformed(err);
            memcpy(&status, payload, sizeof status);
            return status < 0 ? cni_fail(err, -status, "%s", "") : interrupted;
        }
        if (more < 0)
            return malformed(err);
    }
}

int cni_netlink_dump(struct cni_netlink *netlink, struct cni_messages *request, struct cni_messages *answers,
                     struct cni_error *err)
{
    int result = 1;

    if (request->status)
        return cni_fail(err, request->status, "build a netlink request");
    pthread_mutex_lock(&netlink->lock);
    for (int i = 0; i < DUMP_TRIES && result == 1; i++) {
        cni_messages_clear(answers);
        result = dump(netlink, request, answers, err);
    }
    pthread_mutex_unlock(&netlink->lock);
    return result == 1 ? cni_fail(err, EAGAIN, "the list changed during each of %d readings", DUMP_TRIES) : result;
}

int cni_netlink_wait(struct cni_netlink *netlink, struct cni_messages *answers, int milliseconds,
                     struct cni_error *err)
{
    struct pollfd readable = {.fd = netlink->fd, .events = POLLIN};
    int ready = poll(&readable, 1, milliseconds);

    if (ready < 0)
        return errno == EINTR ? 0 : cni_fail(err, errno, "wait for a netlink notification");
    if (ready == 0)
        return 0;
    return receive(netlink, answers, err) < 0 ? -1 : 1;
}
