# Everything that the core uses from the C library and the kernel's headers; it is
# declared nowhere else.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t


cdef extern from "sys/socket.h" nogil:
    int AF_UNSPEC
    int AF_INET
    int AF_INET6


cdef extern from "linux/netlink.h" nogil:
    struct nlmsghdr:
        uint32_t nlmsg_len
        uint16_t nlmsg_type
        uint16_t nlmsg_flags
        uint32_t nlmsg_seq
        uint32_t nlmsg_pid

    int NLMSG_ERROR
    int NLMSG_DONE
    int NLM_F_ACK
    int NLM_F_CREATE
    int NLM_F_EXCL
    int NLM_F_REPLACE
    int NLM_F_APPEND
    int NLM_F_DUMP


cdef extern from "linux/if.h" nogil:
    unsigned int IFF_UP
    unsigned int IFF_PROMISC


cdef extern from "linux/if_link.h" nogil:
    int IFLA_ADDRESS
    int IFLA_IFNAME
    int IFLA_MTU
    int IFLA_LINK
    int IFLA_MASTER
    int IFLA_TXQLEN
    int IFLA_OPERSTATE
    int IFLA_LINKINFO
    int IFLA_IFALIAS
    int IFLA_PROMISCUITY
    int IFLA_LINK_NETNSID
    int IFLA_GROUP
    int IFLA_NET_NS_FD
    int IFLA_NUM_RX_QUEUES
    int IFLA_NUM_TX_QUEUES
    int IFLA_AF_SPEC
    int IFLA_EXT_MASK
    int RTEXT_FILTER_SKIP_STATS
    int IFLA_INET6_CONF
    int IFLA_INFO_KIND
    int IFLA_INFO_DATA
    int IFLA_INFO_SLAVE_KIND
    int IFLA_INFO_SLAVE_DATA


cdef extern from "linux/veth.h" nogil:
    int VETH_INFO_PEER


cdef extern from "linux/if_addr.h" nogil:
    struct ifaddrmsg:
        uint8_t ifa_family
        uint8_t ifa_prefixlen
        uint8_t ifa_flags
        uint8_t ifa_scope
        uint32_t ifa_index

    int IFA_ADDRESS
    int IFA_LOCAL
    int IFA_LABEL
    int IFA_BROADCAST
    int IFA_FLAGS
    unsigned int IFA_F_NODAD
    unsigned int IFA_F_NOPREFIXROUTE


cdef extern from "linux/rtnetlink.h" nogil:
    struct ifinfomsg:
        unsigned char ifi_family
        unsigned short ifi_type
        int ifi_index
        unsigned int ifi_flags
        unsigned int ifi_change

    struct rtmsg:
        unsigned char rtm_family
        unsigned char rtm_dst_len
        unsigned char rtm_src_len
        unsigned char rtm_tos
        unsigned char rtm_table
        unsigned char rtm_protocol
        unsigned char rtm_scope
        unsigned char rtm_type
        unsigned int rtm_flags

    struct rtnexthop:
        unsigned short rtnh_len
        unsigned char rtnh_flags
        unsigned char rtnh_hops
        int rtnh_ifindex

    int RTM_NEWLINK
    int RTM_DELLINK
    int RTM_GETLINK
    int RTM_NEWADDR
    int RTM_DELADDR
    int RTM_GETADDR
    int RTM_NEWROUTE
    int RTM_DELROUTE
    int RTM_GETROUTE
    int RTNLGRP_LINK

    int RTA_DST
    int RTA_OIF
    int RTA_GATEWAY
    int RTA_PRIORITY
    int RTA_PREFSRC
    int RTA_METRICS
    int RTA_TABLE
    int RTA_MULTIPATH
    int RTAX_MTU
    int RTAX_ADVMSS
    int RTN_UNICAST
    int RTPROT_BOOT
    int RT_TABLE_MAIN
    int RT_TABLE_COMPAT
    int RT_SCOPE_UNIVERSE
    int RT_SCOPE_NOWHERE
