"""Tables that no single plugin has: of a list, of a route, and of what a plugin and its IPAM plugin read together."""

from __future__ import annotations

from typing import Any

from cni.skel.config import Address, Config, Field, Integer, ListOf, Network, Object, Section, Settings, Text
from cni.skel.plugin import Plugin
from cni.spec import gojson


def Switch(meaning: str) -> Field[bool, bool]:
    """Return the field of a boolean in a list, for which Go's library takes the strings "true" and "false" as well."""

    def read(value: Any, path: str) -> bool:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        return gojson.flag(value, path)

    return Field(read, "boolean", lambda: False, meaning)


class ListConf(Settings):
    """A network list: the runtime reads it, and hands each plugin its own object."""

    cniVersion = Text("", "version of the specification that the configuration is written for; empty is 0.1.0")
    cniVersions = ListOf(Text(), "further versions; the runtime takes the highest one that it knows")
    name = Text("", "name of the network")
    disableCheck = Switch("runtimes do not call CHECK")
    disableGC = Switch("runtimes do not call GC")
    loadOnlyInlinedPlugins = Switch("runtimes ignore the folder beside this file that is named after the network")
    plugins = ListOf(Object(), "the plugins in the order of ADD")


class RouteConf(Settings):
    """The keys of a route, as result.Route reads them."""

    dst = Network(None, "destination")
    gw = Address(None, "the gateway; without it, the gateway of the addresses")
    mtu = Integer(0, "MTU of the route in bytes; 0 is the MTU of the interface")
    advmss = Integer(0, "the TCP segment size to announce; 0 leaves it to the kernel")
    priority = Integer(0, "the route's metric; 0 leaves it to the kernel")
    table = Integer(None, "the routing table; without it, main")
    scope = Integer(None, "the scope's number, as in rtnetlink(7)")


class DNSConf(Settings):
    """The keys of resolver settings, as result.DNS reads them."""

    nameservers = ListOf(Text(), "addresses of the name servers")
    domain = Text("", "the local domain")
    search = ListOf(Text(), "domains in which short names are looked up")
    options = ListOf(Text(), "options as in resolv.conf(5)")


_OF_KINDS: dict[str, type[Settings]] = {"route": RouteConf, "DNS settings": DNSConf}

# Keys that a plugin and its IPAM plugin both read: the configuration is passed on as it is.
_SHARED = ("runtimeConfig", "args")
# Keys that the runtime injects.
GIVEN = (Config.prevResult.key, Config.valid_attachments.key, "runtimeConfig")


def table_of(field: Field[Any, Any]) -> type[Settings] | None:
    """Return the table of the objects in a field or in its lists; None if these may have any keys."""
    while field.item:
        field = field.item
    return field.table or _OF_KINDS.get(field.kind)


def field_of(table: type[Settings], key: str) -> Field[Any, Any] | None:
    """Return the field with this key, which is not case-sensitive."""
    return next((field for field in table.fields() if field.folded == gojson.fold(key)), None)


def together(plugin: Plugin, ipam: Plugin | None) -> type[Settings]:
    """Return the table of a plugin's whole configuration, in which the IPAM plugin's `ipam` and _SHARED count."""
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


def _merged(first: Field[Any, Any], second: Field[Any, Any]) -> Field[Any, Any]:
    """Return a section that takes the keys of both."""
    if first.table is None or second.table is None:
        return second if first.table else first
    keys = {field.key: field for field in second.table.fields()}
    for field in first.table.fields():
        keys[field.key] = _merged(field, keys[field.key]) if field.key in keys else field
    merged = Section(_table(keys), first.meaning, key=first.key)
    merged.__set_name__(Settings, first.name)
    return merged


def _table(fields: dict[str, Field[Any, Any]]) -> type[Settings]:
    return type("Together", (Settings,), {field.name: field for field in fields.values()})


def capabilities(plugin: Plugin, ipam: Plugin | None = None) -> dict[str, str] | None:
    """Return the capabilities of a plugin by name, each with its meaning; None if it takes any."""
    runtime = field_of(together(plugin, ipam), "runtimeConfig")
    if runtime is None:
        return {}
    return {field.key: field.meaning for field in runtime.table.fields()} if runtime.table else None
