# The kernel's messages as objects. Every length is checked before a byte is read; a
# malformed message raises ValueError.

OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")  # RFC 2863


cdef class Attributes:
    """An iterator over the attributes in a piece of memory."""
    cdef const unsigned char *data
    cdef size_t length
    cdef size_t offset
    cdef uint16_t type
    cdef const unsigned char *value
    cdef size_t size

    cdef int next(self) except -1:
        cdef int more = cni_next_attribute(self.data, self.length, &self.offset, &self.type, &self.value, &self.size)
        if more < 0:
            raise ValueError("malformed netlink message: an attribute is longer than what holds it")
        return more

    cdef uint32_t u32(self) except? 4294967295:
        cdef uint32_t number
        if self.size < sizeof(number):
            raise ValueError(f"malformed netlink message: attribute {self.type} has {self.size} bytes, not 4")
        memcpy(&number, self.value, sizeof(number))
        return number

    cdef bytes bytes(self):
        return self.value[:self.size]

    cdef str text(self):
        return self.value[:self.size].rstrip(b"\0").decode("utf-8", "replace")

    cdef Attributes nested(self):
        return attributes(self.value, self.size, 0)


cdef Attributes attributes(const unsigned char *data, size_t length, size_t header):
    cdef Attributes walk = Attributes.__new__(Attributes)
    if length < header:
        raise ValueError(f"malformed netlink message: {length} bytes, shorter than its header of {header}")
    walk.data = data
    walk.length = length
    # Attributes start at the next multiple of four after the header.
    walk.offset = (header + 3) & ~<size_t>3
    return walk


cdef dict collect(Attributes walk):
    cdef dict values = {}
    while walk.next():
        values[walk.type] = walk.bytes()
    return values


def parse_attributes(bytes data) -> dict:
    return collect(attributes(data, len(data), 0))


cdef enum:
    DEVCONF_ACCEPT_RA = 3  # linux/ipv6.h


cdef class Link:
    cdef readonly int index
    cdef readonly unsigned int flags
    cdef readonly str name
    cdef readonly str hwaddr
    cdef readonly str kind
    cdef readonly str port_kind
    cdef readonly str alias
    cdef readonly str operstate
    cdef readonly unsigned int mtu
    cdef readonly unsigned int master
    cdef readonly unsigned int link
    cdef readonly unsigned int txqlen
    cdef readonly unsigned int promiscuity
    cdef readonly unsigned int group
    cdef readonly int link_netnsid
    cdef readonly int accept_ra
    cdef readonly dict data
    cdef readonly dict port_data

    def __cinit__(self):
        self.name = self.hwaddr = self.kind = self.port_kind = self.alias = ""
        self.operstate = "unknown"
        self.link_netnsid = -1
        self.accept_ra = -1
        self.data = {}
        self.port_data = {}

    @property
    def is_up(self) -> bool:
        return bool(self.flags & sys.IFF_UP)

    @property
    def is_promiscuous(self) -> bool:
        return bool(self.flags & sys.IFF_PROMISC)

    def __repr__(self) -> str:
        return f"<Link {self.index} {self.name} {self.kind or 'device'} {self.hwaddr} {self.operstate}>"


cdef int link_info(Link link, Attributes info) except -1:
    while info.next():
        if info.type == sys.IFLA_INFO_KIND:
            link.kind = info.text()
        elif info.type == sys.IFLA_INFO_DATA:
            link.data = collect(info.nested())
        elif info.type == sys.IFLA_INFO_SLAVE_KIND:
            link.port_kind = info.text()
        elif info.type == sys.IFLA_INFO_SLAVE_DATA:
            link.port_data = collect(info.nested())
    return 0


cdef int link_families(Link link, Attributes families) except -1:
    """Read what the families of protocols keep about a link."""
    cdef Attributes walk
    cdef int32_t value
    while families.next():
        if families.type != sys.AF_INET6:
            continue
        walk = families.nested()
        while walk.next():
            # An array of parameters, by number.
            if walk.type == sys.IFLA_INET6_CONF and walk.size >= (DEVCONF_ACCEPT_RA + 1) * sizeof(value):
                memcpy(&value, walk.value + DEVCONF_ACCEPT_RA * sizeof(value), sizeof(value))
                link.accept_ra = value
    return 0


cdef Link read_link(const unsigned char *payload, size_t length):
    cdef sys.ifinfomsg header
    cdef Link link = Link.__new__(Link)
    cdef Attributes walk = attributes(payload, length, sizeof(header))
    memcpy(&header, payload, sizeof(header))
    link.index = header.ifi_index
    link.flags = header.ifi_flags
    while walk.next():
        if walk.type == sys.IFLA_IFNAME:
            link.name = walk.text()
        elif walk.type == sys.IFLA_ADDRESS:
            link.hwaddr = hwaddr_text(walk.value) if walk.size == CNI_HWADDR_LEN else walk.bytes().hex(":")
        elif walk.type == sys.IFLA_MTU:
            link.mtu = walk.u32()
        elif walk.type == sys.IFLA_MASTER:
            link.master = walk.u32()
        elif walk.type == sys.IFLA_LINK:
            link.link = walk.u32()
        elif walk.type == sys.IFLA_LINK_NETNSID:
            link.link_netnsid = <int32_t>walk.u32()
        elif walk.type == sys.IFLA_TXQLEN:
            link.txqlen = walk.u32()
        elif walk.type == sys.IFLA_PROMISCUITY:
            link.promiscuity = walk.u32()
        elif walk.type == sys.IFLA_GROUP:
            link.group = walk.u32()
        elif walk.type == sys.IFLA_IFALIAS:
            link.alias = walk.text()
        elif walk.type == sys.IFLA_OPERSTATE and walk.size and walk.value[0] < len(OPERSTATES):
            link.operstate = OPERSTATES[walk.value[0]]
        elif walk.type == sys.IFLA_LINKINFO:
            link_info(link, walk.nested())
        elif walk.type == sys.IFLA_AF_SPEC:
            link_families(link, walk.nested())
    return link


cdef class Address:
    cdef readonly bytes message
    cdef readonly int index
    cdef readonly bytes packed
    cdef readonly int prefix
    cdef readonly unsigned int flags
    cdef readonly int scope
    cdef readonly str label

    def __repr__(self) -> str:
        return f"<Address {format_ip(self.packed)}/{self.prefix} of link {self.index}>"


cdef bytes ip_bytes(Attributes walk):
    if walk.size != 4 and walk.size != 16:
        raise ValueError(f"malformed netlink message: an IP address of {walk.size} bytes")
    return walk.bytes()


cdef Address read_address(const unsigned char *payload, size_t length):
    cdef sys.ifaddrmsg header
    cdef Address address = Address.__new__(Address)
    cdef Attributes walk = attributes(payload, length, sizeof(header))
    cdef bytes local = None
    memcpy(&header, payload, sizeof(header))
    address.message = payload[:length]
    address.index = header.ifa_index
    address.prefix = header.ifa_prefixlen
    address.flags = header.ifa_flags
    address.scope = header.ifa_scope
    address.label = ""
    while walk.next():
        if walk.type == sys.IFA_LOCAL:
            local = ip_bytes(walk)
        elif walk.type == sys.IFA_ADDRESS:
            address.packed = ip_bytes(walk)
        elif walk.type == sys.IFA_FLAGS:
            address.flags = walk.u32()
        elif walk.type == sys.IFA_LABEL:
            address.label = walk.text()
    # On a point-to-point link IFA_ADDRESS is the other end (linux/if_addr.h).
    if local is not None:
        address.packed = local
    if address.packed is None:
        raise ValueError("malformed netlink message: an address without an address")
    return address


cdef class Route:
    cdef readonly bytes message
    cdef readonly int family
    cdef readonly bytes dst
    cdef readonly int prefix
    cdef readonly bytes gateway
    cdef readonly bytes src
    cdef readonly unsigned int index
    cdef readonly unsigned int priority
    cdef readonly unsigned int table
    cdef readonly int scope
    cdef readonly int type
    cdef readonly int protocol
    cdef readonly unsigned int mtu
    cdef readonly unsigned int advmss
    cdef readonly list nexthops

    def __repr__(self) -> str:
        return f"<Route {format_ip(self.dst)}/{self.prefix} table {self.table}>"


cdef int route_metrics(Route route, Attributes metrics) except -1:
    while metrics.next():
        if metrics.type == sys.RTAX_MTU:
            route.mtu = metrics.u32()
        elif metrics.type == sys.RTAX_ADVMSS:
            route.advmss = metrics.u32()
    return 0


cdef list read_nexthops(const unsigned char *data, size_t length):
    """Return (link index, gateway or None) for every next hop of a multipath route."""
    cdef sys.rtnexthop hop
    cdef Attributes walk
    cdef list hops = []
    cdef size_t step
    while length:
        if length < sizeof(hop):
            raise ValueError("malformed netlink message: a next hop is shorter than its header")
        memcpy(&hop, data, sizeof(hop))
        if hop.rtnh_len < sizeof(hop) or hop.rtnh_len > length:
            raise ValueError("malformed netlink message: a next hop is longer than what holds it")
        gateway = None
        walk = attributes(data, hop.rtnh_len, sizeof(hop))
        while walk.next():
            if walk.type == sys.RTA_GATEWAY:
                gateway = ip_bytes(walk)
        hops.append((hop.rtnh_ifindex, gateway))
        step = (hop.rtnh_len + 3) & ~3
        if step >= length:
            break
        data += step
        length -= step
    return hops


cdef Route read_route(const unsigned char *payload, size_t length):
    cdef sys.rtmsg header
    cdef Route route = Route.__new__(Route)
    cdef Attributes walk = attributes(payload, length, sizeof(header))
    memcpy(&header, payload, sizeof(header))
    route.message = payload[:length]
    route.family = header.rtm_family
    route.dst = bytes(4 if header.rtm_family == sys.AF_INET else 16)
    route.prefix = header.rtm_dst_len
    route.table = header.rtm_table
    route.scope = header.rtm_scope
    route.type = header.rtm_type
    route.protocol = header.rtm_protocol
    route.nexthops = []
    while walk.next():
        if walk.type == sys.RTA_DST:
            route.dst = ip_bytes(walk)
        elif walk.type == sys.RTA_GATEWAY:
            route.gateway = ip_bytes(walk)
        elif walk.type == sys.RTA_PREFSRC:
            route.src = ip_bytes(walk)
        elif walk.type == sys.RTA_OIF:
            route.index = walk.u32()
        elif walk.type == sys.RTA_PRIORITY:
            route.priority = walk.u32()
        elif walk.type == sys.RTA_TABLE:
            route.table = walk.u32()
        elif walk.type == sys.RTA_METRICS:
            route_metrics(route, walk.nested())
        elif walk.type == sys.RTA_MULTIPATH:
            route.nexthops = read_nexthops(walk.value, walk.size)
    return route


cdef object read_object(uint16_t type, const unsigned char *payload, size_t length):
    """Return a Link, an Address, a Route, or (type, the message's bytes) for all else."""
    if type == sys.RTM_NEWLINK:
        return read_link(payload, length)
    # Other families (MPLS, CAN, multicast) use these numbers with headers of their own.
    if length and payload[0] not in (sys.AF_INET, sys.AF_INET6):
        return type, payload[:length]
    if type == sys.RTM_NEWADDR:
        return read_address(payload, length)
    if type == sys.RTM_NEWROUTE:
        return read_route(payload, length)
    return type, payload[:length]


def parse_message(int type, bytes payload):
    return read_object(type, payload, len(payload))


def parse_messages(bytes data) -> list:
    cdef sys.nlmsghdr header
    cdef const unsigned char *payload
    cdef const unsigned char *start = data
    cdef size_t length, offset = 0
    cdef int more
    cdef list objects = []
    while True:
        more = cni_next_message(start, len(data), &offset, &header, &payload, &length)
        if more < 0:
            raise ValueError("malformed netlink message: it is longer than what was received")
        if not more:
            return objects
        objects.append(read_object(header.nlmsg_type, payload, length))
