/* rtnetlink: requests are built in a buffer, sent together, and every answer is
 * matched to its request.
 *
 * The kernel goes on with the next request of a batch when one fails, so a batch
 * saves system calls but is no transaction: its sender must be able to roll back. */
#ifndef CNI_NETLINK_H
#define CNI_NETLINK_H

#include <linux/netlink.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

#include "error.h"

/* A growing buffer of netlink messages. A failure to grow, or an attribute that is
 * too long for its length field, is kept in `status` until the buffer is sent.
 * A message that was begun and never ended is overwritten by the next one. */
struct cni_messages {
    unsigned char *data;
    size_t length;
    size_t finished; /* part of `length`: the end of the last whole message */
    size_t capacity;
    uint32_t count;
    int status;
};

void cni_messages_free(struct cni_messages *messages);
void cni_messages_clear(struct cni_messages *messages);

/* Begin a request with its family's fixed header. Return where it starts. */
size_t cni_message_begin(struct cni_messages *messages, uint16_t type, uint16_t flags, const void *header,
                         size_t length);
void cni_message_end(struct cni_messages *messages, size_t start);

void cni_attribute(struct cni_messages *messages, uint16_t type, const void *data, size_t length);
void cni_attribute_u32(struct cni_messages *messages, uint16_t type, uint32_t value);
void cni_attribute_text(struct cni_messages *messages, uint16_t type, const char *text);
size_t cni_nest_begin(struct cni_messages *messages, uint16_t type);
void cni_nest_end(struct cni_messages *messages, size_t start);

/* Bytes that follow a nest's start without being an attribute (IFLA_INFO_PEER). */
void cni_append(struct cni_messages *messages, const void *data, size_t length);

struct cni_netlink {
    int fd;
    uint32_t sequence;
    pthread_mutex_t lock; /* held for a conversation, and to close the socket */
};

int cni_netlink_open(struct cni_netlink *netlink, int netns, int protocol, struct cni_error *err);
/* Close the socket, after a conversation of another thread. A second call does nothing. */
void cni_netlink_close(struct cni_netlink *netlink);

/* Subscribe to notifications: `group` is an RTNLGRP_ number. From then on the socket
 * is for cni_netlink_wait alone: a conversation would drop notifications. */
int cni_netlink_subscribe(struct cni_netlink *netlink, uint32_t group, struct cni_error *err);

/* Send every request; fill `answers` with the kernel's answers: data, and one
 * NLMSG_ERROR for each request that it refused, and for some that succeeded (error 0).
 * A request without NLM_F_ACK must be answered by one message. `first` becomes the
 * sequence number of the first request; the others follow. */
int cni_netlink_transact(struct cni_netlink *netlink, struct cni_messages *requests, struct cni_messages *answers,
                         uint32_t *first, struct cni_error *err);

/* Send one dump request and gather its answers, again from the start if the kernel
 * reports that the list changed meanwhile (NLM_F_DUMP_INTR). `sequence` becomes the
 * sequence number of the answers. */
int cni_netlink_dump(struct cni_netlink *netlink, struct cni_messages *request, struct cni_messages *answers,
                     uint32_t *sequence, struct cni_error *err);

/* Wait for a notification. Return 1: `answers` has it; 0: a timeout or a signal;
 * -1: failure, ENOBUFS if notifications were lost. */
int cni_netlink_wait(struct cni_netlink *netlink, struct cni_messages *answers, int milliseconds,
                     struct cni_error *err);

/* Iterate over messages and attributes. Return 1: there is one; 0: the end; -1:
 * malformed. `offset` starts at 0. Nothing beyond `length` is read. */
int cni_next_message(const unsigned char *data, size_t length, size_t *offset, struct nlmsghdr *header,
                     const unsigned char **payload, size_t *payload_length);
int cni_next_attribute(const unsigned char *data, size_t length, size_t *offset, uint16_t *type,
                       const unsigned char **payload, size_t *payload_length);

/* Read an NLMSG_ERROR. Return a positive errno (0: success), or -1 if it is malformed;
 * `words` becomes the kernel's explanation if it gave one. */
int cni_acknowledgement(const struct nlmsghdr *header, const unsigned char *payload, size_t length, char *words,
                        size_t room);

#endif
