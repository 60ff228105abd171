# The functions of the core's own C files, as in their headers.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from includes.system cimport nlmsghdr


cdef extern from "error.h" nogil:
    struct cni_error:
        int status
        char what[256]


cdef extern from "netns.h" nogil:
    int cni_netns_current(cni_error *err)
    int cni_netns_open(const char *path, cni_error *err)
    int cni_netns_verify(int fd, const char *name, cni_error *err)
    struct cni_identity:
        uint64_t device
        uint64_t inode
    int cni_netns_identity(int fd, cni_identity *identity, cni_error *err)
    int cni_netns_create(const char *path, cni_error *err)
    int cni_netns_share(const char *folder, cni_error *err)
    int cni_netns_remove(const char *path, cni_error *err)
    int cni_netns_socket(int netns, int domain, int type, int protocol, cni_error *err)
    int cni_netns_open_file(int netns, const char *path, int flags, cni_error *err)
    struct cni_file:
        const char *path
        const char *data
        size_t length
        int status
    int cni_netns_write_files(int netns, cni_file *files, size_t count, cni_error *err)
    int cni_netns_pin(int netns, cni_error *err)


cdef extern from "files.h" nogil:
    int cni_file_read(int folder, const char *name, char **data, size_t *length, cni_error *err)
    int cni_file_write(int folder, const char *name, const char *data, size_t length, int append, cni_error *err)
    int cni_file_replace(int folder, const char *name, const char *temporary, const char *data, size_t length,
                         cni_error *err)


cdef extern from "addresses.h" nogil:
    enum:
        CNI_HWADDR_LEN
        CNI_HWADDR_TEXT
        CNI_IP_TEXT
    void cni_hwaddr_from_ip(const uint8_t *ip, size_t length, uint8_t *out)
    int cni_hwaddr_parse(const char *text, uint8_t *out)
    void cni_hwaddr_format(const uint8_t *hwaddr, char *out)
    int cni_ip_parse(const char *text, uint8_t *out)
    void cni_ip_format(const uint8_t *ip, size_t length, char *out)


cdef extern from "netlink.h" nogil:
    struct cni_messages:
        unsigned char *data
        size_t length
        uint32_t count
        int status

    struct cni_netlink:
        int fd

    void cni_messages_free(cni_messages *messages)
    size_t cni_message_begin(cni_messages *messages, uint16_t type, uint16_t flags, const void *header, size_t length)
    void cni_message_end(cni_messages *messages, size_t start)
    void cni_attribute(cni_messages *messages, uint16_t type, const void *data, size_t length)
    void cni_attribute_u32(cni_messages *messages, uint16_t type, uint32_t value)
    void cni_attribute_text(cni_messages *messages, uint16_t type, const char *text)
    size_t cni_nest_begin(cni_messages *messages, uint16_t type)
    void cni_nest_end(cni_messages *messages, size_t start)
    void cni_append(cni_messages *messages, const void *data, size_t length)
    int cni_netlink_open(cni_netlink *netlink, int netns, int protocol, cni_error *err)
    void cni_netlink_close(cni_netlink *netlink)
    int cni_netlink_subscribe(cni_netlink *netlink, uint32_t group, cni_error *err)
    int cni_netlink_transact(cni_netlink *netlink, cni_messages *requests, cni_messages *answers, uint32_t *first,
                             cni_error *err)
    int cni_netlink_dump(cni_netlink *netlink, cni_messages *request, cni_messages *answers, uint32_t *sequence,
                         cni_error *err)
    int cni_netlink_wait(cni_netlink *netlink, cni_messages *answers, int milliseconds, cni_error *err)
    int cni_next_message(const unsigned char *data, size_t length, size_t *offset, nlmsghdr *header,
                         const unsigned char **payload, size_t *payload_length)
    int cni_next_attribute(const unsigned char *data, size_t length, size_t *offset, uint16_t *type,
                           const unsigned char **payload, size_t *payload_length)
    int cni_acknowledgement(const nlmsghdr *header, const unsigned char *payload, size_t length, char *words,
                            size_t room)
