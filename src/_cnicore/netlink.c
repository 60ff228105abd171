#define _GNU_SOURCE
#include "netlink.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "netns.h"

/* Requests in one sendmsg: their answers must fit in a receive buffer of default size,
 * of which a link's state takes 9 KiB. A buffer that overflows loses acknowledgements. */
#define REQUESTS_AT_ONCE 16
/* The kernel makes a dump's datagrams as large as the reader's buffer, up to 32 KiB. */
#define LARGEST_DATAGRAM 65536
#define DUMP_ATTEMPTS 20
/* Notifications of a busy node: a hundred links' states. */
#define NOTIFICATIONS_BUFFER (1 << 20)
#define LAST_ERRNO 4095 /* the kernel's MAX_ERRNO */

/* NLMSG_ALIGN for any size_t: the mask of the macro has 32 bits. */
static size_t padded_length(size_t length)
{
    return (length + NLMSG_ALIGNTO - 1) & ~(size_t)(NLMSG_ALIGNTO - 1);
}

/* ---- building ---------------------------------------------------------- */

void cni_messages_free(struct cni_messages *messages)
{
    free(messages->data);
    memset(messages, 0, sizeof *messages);
}

void cni_messages_clear(struct cni_messages *messages)
{
    messages->length = 0;
    messages->finished = 0;
    messages->count = 0;
    messages->status = 0;
}

static int reserve_room(struct cni_messages *messages, size_t more)
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

/* Append `data`, padded to four bytes as netlink requires. */
void cni_append(struct cni_messages *messages, const void *data, size_t length)
{
    size_t padded = padded_length(length);

    if (length > UINT16_MAX && !messages->status)
        messages->status = EMSGSIZE;
    if (reserve_room(messages, padded) < 0)
        return;
    if (length)
        memcpy(messages->data + messages->length, data, length);
    memset(messages->data + messages->length + length, 0, padded - length);
    messages->length += padded;
}

size_t cni_message_begin(struct cni_messages *messages, uint16_t type, uint16_t flags, const void *header,
                         size_t length)
{
    struct nlmsghdr message = {.nlmsg_type = type, .nlmsg_flags = (uint16_t)(NLM_F_REQUEST | flags)};
    size_t start = messages->finished;

    messages->length = start;
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
    messages->finished = messages->length;
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
    *offset += padded_length(header->nlmsg_len);
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
    *offset += padded_length(header.nla_len); /* NLA_ALIGNTO is the same four bytes */
    return 1;
}

/* Read the kernel's explanation from the attributes of an extended ack. Return 0, or -1 if malformed. */
static int read_words(const unsigned char *attributes, size_t length, char *words, size_t room)
{
    const unsigned char *value;
    size_t offset = 0, value_length;
    uint16_t type;
    int more;

    while ((more = cni_next_attribute(attributes, length, &offset, &type, &value, &value_length)) > 0) {
        if (type != NLMSGERR_ATTR_MSG)
            continue;
        if (value_length >= room)
            value_length = room - 1;
        memcpy(words, value, value_length);
        words[value_length] = '\0';
    }
    return more;
}

/* Read the number that an acknowledgement or the end of a dump starts with. Return it
 * as a positive errno, or -1 if malformed. `skip` bytes precede the extended ack. */
static int read_status(const struct nlmsghdr *header, const unsigned char *payload, size_t length, size_t skip,
                       char *words, size_t room)
{
    int32_t error;

    words[0] = '\0';
    memcpy(&error, payload, sizeof error);
    if (error > 0 || error < -LAST_ERRNO)
        return -1;
    if (header->nlmsg_flags & NLM_F_ACK_TLVS &&
        (skip > length || read_words(payload + skip, length - skip, words, room) < 0))
        return -1;
    return -error;
}

int cni_acknowledgement(const struct nlmsghdr *header, const unsigned char *payload, size_t length, char *words,
                        size_t room)
{
    struct nlmsgerr message;
    size_t skip = sizeof message;

    if (length < sizeof message)
        return -1;
    memcpy(&message, payload, sizeof message);
    /* The request is between the code and the explanation, unless it was capped. */
    if (header->nlmsg_flags & NLM_F_ACK_TLVS && !(header->nlmsg_flags & NLM_F_CAPPED)) {
        if (message.msg.nlmsg_len < sizeof message.msg)
            return -1;
        skip += padded_length(message.msg.nlmsg_len) - sizeof message.msg;
    }
    return read_status(header, payload, length, skip, words, room);
}

/* Read an NLMSG_DONE, the end of a dump. Return as cni_acknowledgement. */
static int dump_end(const struct nlmsghdr *header, const unsigned char *payload, size_t length, char *words,
                    size_t room)
{
    if (length < sizeof(int32_t))
        return -1;
    return read_status(header, payload, length, sizeof(int32_t), words, room);
}

/* ---- the socket -------------------------------------------------------- */

static void try_to_set_option(int fd, int level, int option, int value)
{
    /* All these options are conveniences, which a kernel may lack or refuse. */
    (void)!setsockopt(fd, level, option, &value, sizeof value);
}

int cni_netlink_open(struct cni_netlink *netlink, int netns, int protocol, struct cni_error *err)
{
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};

    netlink->lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
    netlink->fd = cni_netns_socket(netns, AF_NETLINK, SOCK_RAW, protocol, err);
    if (netlink->fd < 0)
        return -1;
    try_to_set_option(netlink->fd, SOL_NETLINK, NETLINK_EXT_ACK, 1);
    try_to_set_option(netlink->fd, SOL_NETLINK, NETLINK_CAP_ACK, 1);
    try_to_set_option(netlink->fd, SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1);
    if (bind(netlink->fd, (struct sockaddr *)&address, sizeof address) < 0) {
        cni_fail(err, errno, "bind a netlink socket");
        close(netlink->fd);
        netlink->fd = -1;
        return -1;
    }
    netlink->sequence = 1;
    return 0;
}

void cni_netlink_close(struct cni_netlink *netlink)
{
    pthread_mutex_lock(&netlink->lock);
    if (netlink->fd >= 0)
        close(netlink->fd);
    netlink->fd = -1;
    pthread_mutex_unlock(&netlink->lock);
}

int cni_netlink_subscribe(struct cni_netlink *netlink, uint32_t group, struct cni_error *err)
{
    try_to_set_option(netlink->fd, SOL_SOCKET, SO_RCVBUFFORCE, NOTIFICATIONS_BUFFER);
    if (setsockopt(netlink->fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) < 0)
        return cni_fail(err, errno, "subscribe to the netlink group %u", group);
    return 0;
}

static int send_requests(struct cni_netlink *netlink, const unsigned char *data, size_t length, struct cni_error *err)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
    ssize_t sent;

    do
        sent = sendto(netlink->fd, data, length, 0, (struct sockaddr *)&kernel, sizeof kernel);
    while (sent < 0 && errno == EINTR);
    if (sent < 0)
        return cni_fail(err, errno, "send a netlink request of %zu bytes", length);
    if ((size_t)sent != length)
        return cni_fail(err, EIO, "send a netlink request: %zd of %zu bytes were sent", sent, length);
    return 0;
}

/* Append one datagram from the kernel to `answers`. Return its length. */
static ssize_t receive_datagram(struct cni_netlink *netlink, struct cni_messages *answers, struct cni_error *err)
{
    struct sockaddr_nl from;
    socklen_t from_length;
    ssize_t length;

    if (reserve_room(answers, LARGEST_DATAGRAM) < 0)
        return cni_fail(err, answers->status, "read a netlink answer");
    do {
        from_length = sizeof from;
        length = recvfrom(netlink->fd, answers->data + answers->length, LARGEST_DATAGRAM, MSG_TRUNC,
                          (struct sockaddr *)&from, &from_length);
    } while ((length < 0 && errno == EINTR) || (length >= 0 && from.nl_pid != 0)); /* pid 0: the kernel */
    if (length < 0)
        return cni_fail(err, errno, "read a netlink answer");
    if (length > LARGEST_DATAGRAM)
        return cni_fail(err, EMSGSIZE, "read a netlink answer: %zd bytes do not fit in the buffer", length);
    answers->length += padded_length((size_t)length);
    return length;
}

static int fail_malformed(struct cni_error *err)
{
    return cni_fail(err, EBADMSG, "read a netlink answer: it is malformed");
}

/* Number up to REQUESTS_AT_ONCE requests from the socket's sequence, and set `*end` to
 * the end of the last one. The kernel serves them in order and reports refusals
 * anyway, so only the last one asks for an acknowledgement, if it was built to do so
 * (`*acknowledged`): a get is answered instead. */
static uint32_t number_requests(struct cni_netlink *netlink, unsigned char *data, size_t length, size_t *end,
                                int *acknowledged)
{
    const unsigned char *payload;
    size_t payload_length, start = *end, last = *end;
    struct nlmsghdr header, before;
    uint32_t count = 0;

    *acknowledged = 0;
    while (count < REQUESTS_AT_ONCE && cni_next_message(data, length, end, &header, &payload, &payload_length) > 0) {
        if (count) {
            before.nlmsg_flags &= (uint16_t)~NLM_F_ACK;
            memcpy(data + last, &before, sizeof before);
        }
        header.nlmsg_seq = netlink->sequence++;
        memcpy(data + start, &header, sizeof header);
        *acknowledged = (header.nlmsg_flags & NLM_F_ACK) != 0;
        before = header;
        last = start;
        start = *end;
        count++;
    }
    return count;
}

/* Read until the last of the `count` requests from sequence number `first` has been
 * answered or acknowledged. Answers to other requests are dropped. */
static int gather_answers(struct cni_netlink *netlink, uint32_t first, uint32_t count, int acknowledged,
                          struct cni_messages *answers, struct cni_error *err)
{
    const unsigned char *payload;
    size_t payload_length;
    struct nlmsghdr header;
    int more, is_last = !count;

    while (!is_last) {
        size_t start = answers->length, offset = 0;
        ssize_t length = receive_datagram(netlink, answers, err);

        if (length < 0)
            return -1;
        while ((more = cni_next_message(answers->data + start, (size_t)length, &offset, &header, &payload,
                                        &payload_length)) > 0)
            is_last |= header.nlmsg_seq - first == count - 1 && (header.nlmsg_type == NLMSG_ERROR || !acknowledged);
        if (more < 0)
            return fail_malformed(err);
    }
    return 0;
}

static int transact_locked(struct cni_netlink *netlink, struct cni_messages *requests, struct cni_messages *answers,
                           uint32_t *first, struct cni_error *err)
{
    size_t end = 0;

    *first = netlink->sequence;
    while (end < requests->finished) {
        size_t start = end;
        uint32_t sequence = netlink->sequence;
        int acknowledged;
        uint32_t count = number_requests(netlink, requests->data, requests->finished, &end, &acknowledged);

        if (send_requests(netlink, requests->data + start, end - start, err) < 0 ||
            gather_answers(netlink, sequence, count, acknowledged, answers, err) < 0)
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
    result = transact_locked(netlink, requests, answers, first, err);
    pthread_mutex_unlock(&netlink->lock);
    return result;
}

/* Try a dump once. Return 1 if the list changed meanwhile. */
static int dump_once(struct cni_netlink *netlink, struct cni_messages *request, struct cni_messages *answers,
                     uint32_t *sequence, struct cni_error *err)
{
    const unsigned char *payload;
    size_t payload_length, end = 0;
    struct nlmsghdr header;
    char words[256];
    int more, status, acknowledged, interrupted = 0;

    *sequence = netlink->sequence;
    number_requests(netlink, request->data, request->finished, &end, &acknowledged);
    if (send_requests(netlink, request->data, end, err) < 0)
        return -1;
    for (;;) {
        size_t start = answers->length, offset = 0;
        ssize_t length = receive_datagram(netlink, answers, err);

        if (length < 0)
            return -1;
        while ((more = cni_next_message(answers->data + start, (size_t)length, &offset, &header, &payload,
                                        &payload_length)) > 0) {
            if (header.nlmsg_seq != *sequence)
                continue;
            interrupted |= (header.nlmsg_flags & NLM_F_DUMP_INTR) != 0;
            if (header.nlmsg_type == NLMSG_ERROR)
                status = cni_acknowledgement(&header, payload, payload_length, words, sizeof words);
            else if (header.nlmsg_type == NLMSG_DONE)
                status = dump_end(&header, payload, payload_length, words, sizeof words);
            else
                continue;
            if (status < 0)
                return fail_malformed(err);
            return status ? cni_fail(err, status, "%s", words) : interrupted;
        }
        if (more < 0)
            return fail_malformed(err);
    }
}

int cni_netlink_dump(struct cni_netlink *netlink, struct cni_messages *request, struct cni_messages *answers,
                     uint32_t *sequence, struct cni_error *err)
{
    int result = 1;

    if (request->status)
        return cni_fail(err, request->status, "build a netlink request");
    pthread_mutex_lock(&netlink->lock);
    for (int i = 0; i < DUMP_ATTEMPTS && result == 1; i++) {
        cni_messages_clear(answers);
        result = dump_once(netlink, request, answers, sequence, err);
    }
    pthread_mutex_unlock(&netlink->lock);
    return result == 1 ? cni_fail(err, EAGAIN, "the list changed during each of %d attempts", DUMP_ATTEMPTS) : result;
}

int cni_netlink_wait(struct cni_netlink *netlink, struct cni_messages *answers, int milliseconds, struct cni_error *err)
{
    struct pollfd readable = {.fd = netlink->fd, .events = POLLIN};
    int ready = poll(&readable, 1, milliseconds);

    if (ready < 0)
        return errno == EINTR ? 0 : cni_fail(err, errno, "wait for a netlink notification");
    if (ready == 0)
        return 0;
    return receive_datagram(netlink, answers, err) < 0 ? -1 : 1;
}
