# rtnetlink: a socket of one namespace, and batches of requests.

from sys import byteorder

LONGEST_WAIT = 86400.0  # seconds; poll(2) takes an int of milliseconds


class NetlinkError(KernelError):
    def __init__(self, int status, str request, str extack=""):
        super().__init__(status, request)
        self.extack = extack
        self.others = ()

    def __str__(self) -> str:
        words = f" ({self.extack})" if self.extack else ""
        return f"{self.attempt}: {self.strerror}{words}"


def u8(value) -> bytes:
    return value.to_bytes(1, byteorder)


def u16(value) -> bytes:
    return value.to_bytes(2, byteorder)


def u32(value) -> bytes:
    return value.to_bytes(4, byteorder)


def u64(value) -> bytes:
    return value.to_bytes(8, byteorder)


def be16(value) -> bytes:
    return value.to_bytes(2, "big")


# Statistics are most of what the kernel has to say about a link, and nothing here uses them.
WITHOUT_STATISTICS = (sys.IFLA_EXT_MASK, u32(sys.RTEXT_FILTER_SKIP_STATS))

cdef enum:  # linux/if_link.h of Linux 6.7
    NETKIT_PEER_INFO = 1
    NETKIT_MODE = 5
    NETKIT_MODE_L2 = 0


cdef object netlink_failure(cni_error *err, str what):
    return NetlinkError(err.status, what, err.what.decode("utf-8", "replace"))


cdef class Netlink:
    cdef cni_netlink netlink

    def __cinit__(self, int netns=-1, int protocol=0):
        cdef cni_error err
        cdef int status
        self.netlink.fd = -1
        observer = begin("netlink", "open a netlink socket")
        with nogil:
            status = cni_netlink_open(&self.netlink, netns, protocol, &err)
        finish(observer, status, &err)

    def __dealloc__(self):
        with nogil:
            cni_netlink_close(&self.netlink)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        with nogil:
            cni_netlink_close(&self.netlink)

    def fileno(self) -> int:
        return self.netlink.fd

    def __repr__(self) -> str:
        return f"<Netlink fd {self.netlink.fd}>" if self.netlink.fd >= 0 else "<Netlink closed>"

    def batch(self) -> Batch:
        return Batch(self)

    def link(self, link):
        return self.batch().link_get(link).commit()[0]

    def find_link(self, link):
        return self.batch().link_get(link, missing_ok=True).commit()[0]

    def links(self) -> list:
        header, _ = link_request(0)
        return self.dump(sys.RTM_GETLINK, header, [WITHOUT_STATISTICS], "list links")

    def addresses(self, int index=0, int family=0) -> list:
        cdef sys.ifaddrmsg header
        memset(&header, 0, sizeof(header))
        header.ifa_family = family
        header.ifa_index = index
        addresses = self.dump(sys.RTM_GETADDR, (<char *>&header)[:sizeof(header)], (), "list addresses")
        # A kernel without strict checks ignores the filter.
        return [a for a in addresses if isinstance(a, Address) and (not index or a.index == index)]

    def routes(self, int family=0, table=254, *, int index=0) -> list:
        cdef sys.rtmsg header
        memset(&header, 0, sizeof(header))
        header.rtm_family = family
        filters = [(sys.RTA_TABLE, u32(table))] if table else []
        if index:
            filters.append((sys.RTA_OIF, u32(index)))
        try:
            routes = self.dump(sys.RTM_GETROUTE, (<char *>&header)[:sizeof(header)], filters, "list routes")
        except NetlinkError as error:
            if error.errno == _errno.ENOENT:  # a table that has never had a route
                return []
            raise
        # Without a family, multicast, MPLS and others answer too.
        routes = [r for r in routes if isinstance(r, Route) and (not table or r.table == table)]
        if not index:
            return routes
        return [r for r in routes if r.index == index or any([hop[0] == index for hop in r.nexthops])]

    def dump(self, int type, bytes header, attributes, str what) -> list:
        if cni_observer is NULL:
            return self.dump_unobserved(type, header, attributes, what)
        with observed("netlink", what):
            return self.dump_unobserved(type, header, attributes, what)

    cdef list dump_unobserved(self, int type, bytes header, attributes, str what):
        cdef cni_error err
        cdef cni_messages answers
        cdef Batch request = self.batch()
        cdef uint32_t sequence = 0
        cdef int status
        memset(&answers, 0, sizeof(answers))
        request.queue(type, sys.NLM_F_DUMP, header, attributes)
        try:
            with nogil:
                status = cni_netlink_dump(&self.netlink, &request.requests, &answers, &sequence, &err)
            if status < 0:
                raise netlink_failure(&err, what)
            return read_answers(&answers, sequence)
        finally:
            cni_messages_free(&answers)

    def subscribe(self, int group) -> None:
        cdef cni_error err
        if cni_netlink_subscribe(&self.netlink, group, &err) < 0:
            raise failure(&err)

    def wait(self, float seconds) -> list:
        cdef cni_error err
        cdef cni_messages answers
        cdef int status, milliseconds = <int>(min(max(seconds, 0), LONGEST_WAIT) * 1000)
        memset(&answers, 0, sizeof(answers))
        observer = begin("netlink", "wait for a notification")
        try:
            with nogil:
                status = cni_netlink_wait(&self.netlink, &answers, milliseconds, &err)
            if status < 0 and err.status == _errno.ENOBUFS:
                status = 0  # the socket overflowed: the caller reads the current state
            finish(observer, status, &err)
            return read_answers(&answers)
        finally:
            cni_messages_free(&answers)


cdef list read_answers(const cni_messages *answers, int64_t sequence=-1):
    """Return the objects in all answers, or in those with one sequence number."""
    cdef sys.nlmsghdr header
    cdef const unsigned char *payload
    cdef size_t length, offset = 0
    cdef list objects = []
    while cni_next_message(answers.data, answers.length, &offset, &header, &payload, &length) > 0:
        if sequence >= 0 and header.nlmsg_seq != sequence:
            continue
        if header.nlmsg_type not in (sys.NLMSG_DONE, sys.NLMSG_ERROR):
            objects.append(read_object(header.nlmsg_type, payload, length))
    return objects


cdef sys.ifinfomsg link_header(up, promisc=None):
    """Return the header of a request that sets these flags; None leaves one as it is."""
    cdef sys.ifinfomsg header
    memset(&header, 0, sizeof(header))
    for flag, value in ((sys.IFF_UP, up), (sys.IFF_PROMISC, promisc)):
        if value is not None:
            header.ifi_change |= flag
            header.ifi_flags |= flag if value else 0
    return header


cdef tuple link_request(link):
    """Return header and attributes of a request about a link, given by index or by name."""
    cdef sys.ifinfomsg header = link_header(None)
    if not isinstance(link, int):
        return (<char *>&header)[:sizeof(header)], [(sys.IFLA_IFNAME, c_text(link) + b"\0")]
    header.ifi_index = <uint32_t>link
    return (<char *>&header)[:sizeof(header)], []


cdef str explain(template, tuple arguments):
    """Return a request in words; `template` is a format, or a function where a format will not do."""
    if not isinstance(template, str):
        return template(*arguments)
    return template % tuple([format_ip(a) if isinstance(a, bytes) else a for a in arguments])


def explain_link_set(link, up, promisc, name, mtu, hwaddr, alias, master, netns, txqlen, port_kind) -> str:
    changes = [
        None if up is None else "up" if up else "down",
        None if promisc is None else "promiscuous" if promisc else "not promiscuous",
        name and f"name {name}",
        mtu and f"MTU {mtu}",
        hwaddr and f"MAC {hwaddr}",
        None if alias is None else f"alias {alias}",
        None if master < 0 else f"master {master}" if master else "no master",
        None if netns < 0 else "into another namespace",
        None if txqlen < 0 else f"queue length {txqlen}",
        port_kind and f"its flags as a port of the {port_kind}",
    ]
    return f"set link {link}: {', '.join(filter(None, changes)) or 'nothing'}"


def explain_route(verb, dst, prefix, gateway, index, src, priority, table) -> str:
    details = [
        gateway and f"via {format_ip(gateway)}",
        index and f"on link {index}",
        src and f"from {format_ip(src)}",
        priority and f"priority {priority}",
        None if table == sys.RT_TABLE_MAIN else f"in table {table}",
    ]
    return " ".join([f"{verb} the route {format_ip(dst)}/{prefix}", *filter(None, details)])


cdef int family(bytes packed, int prefix) except -1:
    if len(packed) not in (4, 16) or not 0 <= prefix <= 8 * len(packed):
        raise ValueError(f"{packed.hex(':')}/{prefix} is not an address with a prefix length")
    return sys.AF_INET if len(packed) == 4 else sys.AF_INET6


cdef class Batch:
    cdef Netlink netlink
    cdef cni_messages requests
    cdef list queued  # of (template, its arguments: see explain(); errnos to overlook; True for a get)

    def __cinit__(self, Netlink netlink):
        self.netlink = netlink
        self.queued = []

    def __dealloc__(self):
        cni_messages_free(&self.requests)

    def __len__(self) -> int:
        return len(self.queued)

    def __repr__(self) -> str:
        return f"<Batch: {'; '.join([explain(request[0], request[1]) for request in self.queued]) or 'empty'}>"

    # ---- links ----

    cdef size_t begin_link(self, int flags, const sys.ifinfomsg *header) noexcept:
        return cni_message_begin(&self.requests, sys.RTM_NEWLINK, sys.NLM_F_ACK | flags, header, sizeof(header[0]))

    cdef int link_attributes(self, name, hwaddr, uint32_t mtu, int netns, int master=-1, uint32_t link=0, int txqlen=-1,
                             alias=None) except -1:
        """Append what every kind of link has. None, 0 and -1 leave a value to the kernel; 0 is no master."""
        cdef bytes text
        if name is not None:
            text = c_text(name)
            cni_attribute_text(&self.requests, sys.IFLA_IFNAME, text)
        if hwaddr is not None:
            text = parse_hwaddr(hwaddr)
            cni_attribute(&self.requests, sys.IFLA_ADDRESS, <const char *>text, CNI_HWADDR_LEN)
        if mtu:
            cni_attribute_u32(&self.requests, sys.IFLA_MTU, mtu)
        if link:
            cni_attribute_u32(&self.requests, sys.IFLA_LINK, link)
        if master >= 0:
            cni_attribute_u32(&self.requests, sys.IFLA_MASTER, master)
        if txqlen >= 0:
            cni_attribute_u32(&self.requests, sys.IFLA_TXQLEN, txqlen)
        if alias is not None:  # "" removes it
            text = c_text(alias)
            cni_attribute_text(&self.requests, sys.IFLA_IFALIAS, text)
        if netns != -1:  # a closed descriptor must fail, not be taken for none
            cni_attribute_u32(&self.requests, sys.IFLA_NET_NS_FD, netns)
        return 0

    def link_create(self, str kind, str name, *, int index=0, int mtu=0, hwaddr=None, int link=0, int master=-1,
                    int netns=-1, up=None, data=(), exist_ok=False) -> Batch:
        cdef sys.ifinfomsg header = link_header(up)
        cdef bytes kind_text = c_text(kind)
        cdef size_t start, info
        header.ifi_index = index
        start = self.begin_link(sys.NLM_F_CREATE | sys.NLM_F_EXCL, &header)
        self.link_attributes(name, hwaddr, mtu, netns, master, link)
        info = cni_nest_begin(&self.requests, sys.IFLA_LINKINFO)
        cni_attribute_text(&self.requests, sys.IFLA_INFO_KIND, kind_text)
        if data:
            self.nest(sys.IFLA_INFO_DATA, data)
        cni_nest_end(&self.requests, info)
        cni_message_end(&self.requests, start)
        self.queued.append(("create the %s %s", (kind, name), (_errno.EEXIST,) if exist_ok else (), False))
        return self

    def veth(self, str name, str peer, *, int netns=-1, int mtu=0, hwaddr=None, peer_hwaddr=None, int master=-1,
             up=None) -> Batch:
        # By default Linux makes as many queues for each end as there can be processors, each with files of its own
        # below /sys: a third of the time that a pair takes with two of them. Only XDP and GRO on the veth itself use
        # more than one.
        queues = [(sys.IFLA_NUM_TX_QUEUES, u32(1)), (sys.IFLA_NUM_RX_QUEUES, u32(1))]
        return self.pair("veth", sys.VETH_INFO_PEER, (), queues, name, peer, netns, mtu, hwaddr, peer_hwaddr, master,
                         up)

    def netkit(self, str name, str peer, *, int netns=-1, int mtu=0, hwaddr=None, peer_hwaddr=None, int master=-1,
               up=None) -> Batch:
        mode = [(NETKIT_MODE, u32(NETKIT_MODE_L2))]  # so that both ends have a hardware address
        return self.pair("netkit", NETKIT_PEER_INFO, mode, (), name, peer, netns, mtu, hwaddr, peer_hwaddr, master,
                         up)

    cdef object pair(self, str kind, int peer_info, mode, queues, str name, str peer, int netns, int mtu, hwaddr,
                     peer_hwaddr, int master, up):
        """Queue both ends of a pair in one request, the peer born in its own namespace."""
        cdef sys.ifinfomsg header = link_header(up)
        cdef sys.ifinfomsg peer_header = link_header(None)  # the peer's IFF_UP would fail with ENOTCONN
        cdef bytes kind_text = c_text(kind)
        cdef size_t start, info, data, nest
        start = self.begin_link(sys.NLM_F_CREATE | sys.NLM_F_EXCL, &header)
        self.link_attributes(name, hwaddr, mtu, -1, master)
        info = cni_nest_begin(&self.requests, sys.IFLA_LINKINFO)
        cni_attribute_text(&self.requests, sys.IFLA_INFO_KIND, kind_text)
        data = cni_nest_begin(&self.requests, sys.IFLA_INFO_DATA)
        self.attributes(mode)
        nest = cni_nest_begin(&self.requests, peer_info)
        cni_append(&self.requests, &peer_header, sizeof(peer_header))
        self.link_attributes(peer, peer_hwaddr, mtu, netns)
        self.attributes(queues)
        cni_nest_end(&self.requests, nest)
        cni_nest_end(&self.requests, data)
        cni_nest_end(&self.requests, info)
        self.attributes(queues)
        cni_message_end(&self.requests, start)
        self.queued.append(("create the %s pair %s, %s", (kind, name, peer), (), False))
        return self

    def link_set(self, link, *, up=None, promisc=None, name=None, int mtu=0, hwaddr=None, alias=None, int master=-1,
                 int netns=-1, int txqlen=-1, port_kind=None, port_data=()) -> Batch:
        cdef sys.ifinfomsg header = link_header(up, promisc)
        cdef size_t start, info
        cdef bytes kind
        by_index = isinstance(link, int)
        if by_index:
            header.ifi_index = <uint32_t>link
        elif name is not None:
            raise TypeError("a link is renamed by its index")
        start = self.begin_link(0, &header)
        self.link_attributes(name if by_index else link, hwaddr, mtu, netns, master, 0, txqlen, alias)
        if port_kind is not None:
            kind = c_text(port_kind)
            info = cni_nest_begin(&self.requests, sys.IFLA_LINKINFO)
            cni_attribute_text(&self.requests, sys.IFLA_INFO_SLAVE_KIND, kind)
            self.nest(sys.IFLA_INFO_SLAVE_DATA, port_data)
            cni_nest_end(&self.requests, info)
        cni_message_end(&self.requests, start)
        arguments = (link, up, promisc, name, mtu, hwaddr, alias, master, netns, txqlen, port_kind)
        self.queued.append((explain_link_set, arguments, (), False))
        return self

    def link_delete(self, link, *, missing_ok=False) -> Batch:
        header, attributes = link_request(link)
        return self.request(sys.RTM_DELLINK, 0, header, attributes, "delete the link %s", (link,),
                            (_errno.ENODEV,) if missing_ok else ())

    def link_get(self, link, *, missing_ok=False) -> Batch:
        header, attributes = link_request(link)
        return self.get(sys.RTM_GETLINK, header, [*attributes, WITHOUT_STATISTICS], "look up the link %s", (link,),
                        (_errno.ENODEV,) if missing_ok else ())

    # ---- addresses ----

    cdef object address(self, int type, int flags, int index, bytes packed, int prefix, uint32_t properties, str what,
                        tuple ok):
        cdef sys.ifaddrmsg header
        cdef size_t start
        memset(&header, 0, sizeof(header))
        header.ifa_family = family(packed, prefix)
        header.ifa_prefixlen = prefix
        header.ifa_index = index
        start = cni_message_begin(&self.requests, type, sys.NLM_F_ACK | flags, &header, sizeof(header))
        cni_attribute(&self.requests, sys.IFA_LOCAL, <const char *>packed, len(packed))
        cni_attribute(&self.requests, sys.IFA_ADDRESS, <const char *>packed, len(packed))
        if len(packed) == 4 and prefix < 31 and type == sys.RTM_NEWADDR:
            broadcast = int.from_bytes(packed, "big") | (1 << 32 - prefix) - 1
            packed_broadcast = broadcast.to_bytes(4, "big")
            cni_attribute(&self.requests, sys.IFA_BROADCAST, <const char *>packed_broadcast, 4)
        if properties:
            cni_attribute_u32(&self.requests, sys.IFA_FLAGS, properties)
        cni_message_end(&self.requests, start)
        self.queued.append((what, (packed, prefix, index), ok, False))
        return self

    def address_add(self, int index, bytes packed, int prefix, *, nodad=False, noprefixroute=False,
                    exist_ok=False) -> Batch:
        properties = (sys.IFA_F_NODAD if nodad else 0) | (sys.IFA_F_NOPREFIXROUTE if noprefixroute else 0)
        return self.address(sys.RTM_NEWADDR, sys.NLM_F_CREATE | sys.NLM_F_EXCL, index, packed, prefix, properties,
                            "add the address %s/%d to link %d", (_errno.EEXIST,) if exist_ok else ())

    def address_delete(self, int index, bytes packed, int prefix, *, missing_ok=False) -> Batch:
        return self.address(sys.RTM_DELADDR, 0, index, packed, prefix, 0, "delete the address %s/%d from link %d",
                            (_errno.EADDRNOTAVAIL, _errno.ENODEV) if missing_ok else ())

    # ---- routes ----

    cdef object route(self, int type, int flags, sys.rtmsg *header, bytes dst, int prefix, gateway, int index, src,
                      uint32_t priority, uint32_t table, uint32_t mtu, uint32_t advmss, str verb, tuple ok):
        cdef size_t start, metrics
        for address in (gateway, src):
            if address is not None:
                family(address, 0)
        header.rtm_family = family(dst, prefix)
        header.rtm_dst_len = prefix
        header.rtm_table = table if table < 256 else sys.RT_TABLE_COMPAT
        start = cni_message_begin(&self.requests, type, sys.NLM_F_ACK | flags, header, sizeof(header[0]))
        if prefix:
            cni_attribute(&self.requests, sys.RTA_DST, <const char *>dst, len(dst))
        if gateway is not None:
            cni_attribute(&self.requests, sys.RTA_GATEWAY, <const char *>gateway, len(gateway))
        if src is not None:
            cni_attribute(&self.requests, sys.RTA_PREFSRC, <const char *>src, len(src))
        if index:
            cni_attribute_u32(&self.requests, sys.RTA_OIF, index)
        if priority:
            cni_attribute_u32(&self.requests, sys.RTA_PRIORITY, priority)
        if table:
            cni_attribute_u32(&self.requests, sys.RTA_TABLE, table)
        if mtu or advmss:
            metrics = cni_nest_begin(&self.requests, sys.RTA_METRICS)
            if mtu:
                cni_attribute_u32(&self.requests, sys.RTAX_MTU, mtu)
            if advmss:
                cni_attribute_u32(&self.requests, sys.RTAX_ADVMSS, advmss)
            cni_nest_end(&self.requests, metrics)
        cni_message_end(&self.requests, start)
        self.queued.append((explain_route, (verb, dst, prefix, gateway, index, src, priority, table), ok, False))
        return self

    def route_add(self, bytes dst, int prefix, *, bytes gateway=None, int index=0, bytes src=None, priority=0, table=0,
                  int scope=0, mtu=0, advmss=0, flags=0, replace=False, exist_ok=False) -> Batch:
        cdef sys.rtmsg header
        memset(&header, 0, sizeof(header))
        header.rtm_protocol = sys.RTPROT_BOOT
        header.rtm_type = sys.RTN_UNICAST
        header.rtm_scope = scope
        header.rtm_flags = flags
        return self.route(sys.RTM_NEWROUTE, sys.NLM_F_CREATE | (sys.NLM_F_REPLACE if replace else 0), &header, dst,
                          prefix, gateway, index, src, priority, table or sys.RT_TABLE_MAIN, mtu, advmss,
                          "add", (_errno.EEXIST,) if exist_ok else ())

    def route_delete(self, bytes dst, int prefix, *, bytes gateway=None, int index=0, priority=0, table=0,
                     missing_ok=False) -> Batch:
        cdef sys.rtmsg header
        memset(&header, 0, sizeof(header))
        # "Nowhere" means any scope; a given one must match exactly (as iproute2 does).
        header.rtm_scope = sys.RT_SCOPE_NOWHERE
        return self.route(sys.RTM_DELROUTE, 0, &header, dst, prefix, gateway, index, None, priority,
                          table or sys.RT_TABLE_MAIN, 0, 0, "delete",
                          (_errno.ESRCH,) if missing_ok else ())

    # ---- anything else ----

    def request(self, int type, int flags, bytes header, attributes, str what, tuple arguments=(),
                tuple overlook=()) -> Batch:
        # Of every four message types the third is the GET; in others these bits are REPLACE and EXCL.
        if type & 3 == 2 and flags & sys.NLM_F_DUMP:
            raise ValueError(f"{explain(what, arguments)}: a list cannot be requested in a batch; use Netlink.dump")
        self.queue(type, sys.NLM_F_ACK | flags, header, attributes)
        self.queued.append((what, arguments, overlook, False))
        return self

    def get(self, int type, bytes header, attributes, str what, tuple arguments=(), tuple overlook=()) -> Batch:
        self.queue(type, 0, header, attributes)
        self.queued.append((what, arguments, overlook, True))
        return self

    cdef int queue(self, int type, int flags, bytes header, attributes) except -1:
        cdef size_t start = cni_message_begin(&self.requests, type, flags, <const char *>header, len(header))
        self.attributes(attributes)
        cni_message_end(&self.requests, start)
        return 0

    cdef int nest(self, int type, attributes) except -1:
        cdef size_t start = cni_nest_begin(&self.requests, type)
        self.attributes(attributes)
        cni_nest_end(&self.requests, start)
        return 0

    cdef int attributes(self, attributes) except -1:
        cdef bytes value
        for number, content in attributes:
            if isinstance(content, (list, tuple)):
                self.nest(number, content)
                continue
            value = fsencode(content) + b"\0" if isinstance(content, str) else content
            cni_attribute(&self.requests, number, <const char *>value, len(value))
        return 0

    def commit(self) -> list:
        if cni_observer is NULL:
            return self.commit_unobserved()
        with observed("netlink", "\n".join([explain(request[0], request[1]) for request in self.queued])):
            return self.commit_unobserved()

    cdef list commit_unobserved(self):
        cdef cni_error err
        cdef cni_messages answers
        # From here on these are this call's alone: another thread may fill the batch again.
        cdef cni_messages requests = self.requests
        cdef list queued = self.queued
        cdef uint32_t first = 0
        cdef int status
        memset(&self.requests, 0, sizeof(requests))
        memset(&answers, 0, sizeof(answers))
        self.queued = []
        try:
            with nogil:
                status = cni_netlink_transact(&self.netlink.netlink, &requests, &answers, &first, &err)
            if status < 0:
                raise netlink_failure(&err, "; ".join([explain(request[0], request[1]) for request in queued]))
            return read_batch(queued, &answers, first)
        finally:
            cni_messages_free(&answers)
            cni_messages_free(&requests)


cdef list read_batch(list queued, const cni_messages *answers, uint32_t first):
    """Return an entry for each get (None: it does not exist). Raises the first failure."""
    cdef sys.nlmsghdr header
    cdef const unsigned char *payload
    cdef size_t length, offset = 0
    cdef uint32_t number
    cdef dict data = {}
    cdef list failures = []
    while cni_next_message(answers.data, answers.length, &offset, &header, &payload, &length) > 0:
        number = header.nlmsg_seq - first
        if number >= <uint32_t>len(queued):
            continue
        if header.nlmsg_type != sys.NLMSG_ERROR:
            data[number] = read_object(header.nlmsg_type, payload, length)
            continue
        error = refusal(queued[number], &header, payload, length)
        if error is not None:
            failures.append(error)
    if failures:
        failures[0].others = tuple(failures[1:])
        raise failures[0]
    return [data.get(i) for i, request in enumerate(queued) if request[3]]


cdef object refusal(tuple request, const sys.nlmsghdr *header, const unsigned char *payload, size_t length):
    cdef char words[256]
    cdef int status = cni_acknowledgement(header, payload, length, words, sizeof(words))
    what, arguments, overlook, _ = request
    if status < 0:
        raise ValueError(f"malformed netlink message: the answer to: {explain(what, arguments)}")
    if status == 0 or status in overlook:
        return None
    return NetlinkError(status, explain(what, arguments), words.decode("utf-8", "replace"))
