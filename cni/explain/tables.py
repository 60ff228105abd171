"""Tables beyond those of single plugins: a list's, a route's, and what a plugin and its IPAM plugin read together."""

from __future__ import annotations

from typing import Any

from cni.skel.config import Address, Config, Field, Integer, ListOf, Network, Object, Section, Settings, Text
from cni.skel.plugin import Plugin
from cni.spec import gojson


def Switch(meaning: str) -> Field[bool, bool]:
    """A boolean of a list, for which Go's library takes the strings as well."""

    def read(value: Any, path: str) -> bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        return gojson.flag(value, path)

    return Field(read, "boolean", lambda: False, meaning)


class ListConf(Settings):
    """A network: the runtime reads this, and hands each of the plugins its own part."""

    cniVersion = Text("", "version of the specification that the configuration is written for; empty is 0.1.0")
    cniVersions = ListOf(Text(), "further versions; the runtime takes the greatest one that it knows")
    name = Text("", "name of the network")
    disableCheck = Switch("the runtime is not to ask CHECK")
    disableGC = Switch("the runtime is not to ask GC")
    loadOnlyInlinedPlugins = Switch("the folder named after the network, beside this file, is not looked at")
    plugins = ListOf(Object(), "the plugins in the order of ADD")


class RouteConf(Settings):
    """The keys of a route, as result.Route reads them."""

    dst = Network(None, "where it leads")
    gw = Address(None, "the gateway; without one, that of the addresses")
    mtu = Integer(0, "MTU in bytes towards there; 0 is the interface's")
    advmss = Integer(0, "the TCP segment size to announce; 0 leaves it to the kernel")
    priority = Integer(0, "the route's metric; 0 leaves it to the kernel")
    table = Integer(None, "the routing table; without one, main")
    scope = Integer(None, "the scope's number, as in rtnetlink(7)")


class DNSConf(Settings):
    """The keys of resolver settings, as result.DNS reads them."""

    nameservers = ListOf(Text(), "addresses of the servers to ask")
    domain = Text("", "the local domain")
    search = ListOf(Text(), "domains to look for short names in")
    options = ListOf(Text(), "options as in resolv.conf(5)")


_OF_KINDS: dict[str, type[Settings]] = {"route": RouteConf, "DNS settings": DNSConf}

# What a plugin and its IPAM plugin get both: the one configuration is passed on as it is.
_SHARED = ("runtimeConfig", "args")
# Keys that the runtime puts in.
GIVEN = (Config.prevResult.key, Config.valid_attachments.key, "runtimeConfig")


def table_of(field: Field[Any, Any]) -> type[Settings] | None:
    """The table of the objects that a field holds, itself or in its lists; None where it may hold anything."""
    while field.item:
        field = field.item
    return field.table or _OF_KINDS.get(field.kind)


def field_of(table: type[Settings], key: str) -> Field[Any, Any] | None:
    """The field with this key, whatever its case."""
    return next((field for field in table.fields() if field.folded == gojson.fold(key)), None)


def together(plugin: Plugin, ipam: Plugin | None) -> type[Settings]:
    """The table of a plugin's whole configuration: `ipam` is as the IPAM plugin reads it, for others see _SHARED."""
    own = {field.key: field for field in plugin.config.fields()}
    if ipam:
        theirs = {field.key: field for field in ipam.config.fields()}
        if not _is_free(own["ipam"]):
            own["ipam"] = theirs["ipam"]
        for key in _SHARED:
            if key in theirs:
                own[key] = _merged(own[key], theirs[key]) if key in own else theirs[key]
    return _table(own)


def _is_free(field: Field[Any, Any]) -> bool:
    return table_of(field) is None


def _merged(one: Field[Any, Any], other: Field[Any, Any]) -> Field[Any, Any]:
    """A section in which either's keys may be."""
    if one.table is None or other.table is None:
        return other if one.table else one
    keys = {field.key: field for field in other.table.fields()}
    for field in one.table.fields():
        keys[field.key] = _merged(field, keys[field.key]) if field.key in keys else field
    merged = Section(_table(keys), one.meaning, key=one.key)
    merged.__set_name__(Settings, one.name)
    return merged


def _table(fields: dict[str, Field[Any, Any]]) -> type[Settings]:
    return type("Together", (Settings,), {field.name: field for field in fields.values()})


def capabilities(plugin: Plugin, ipam: Plugin | None = None) -> dict[str, str] | None:
    """What may come in runtimeConfig, by name with its meaning; None where anything may."""
    runtime = field_of(together(plugin, ipam), "runtimeConfig")
    if runtime is None:
        return {}
    return {field.key: field.meaning for field in runtime.table.fields()} if runtime.table else None
