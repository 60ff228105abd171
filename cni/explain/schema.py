"""JSON Schemas (draft 7, which editors know best) from the plugins' tables, by which editors complete and check.

They are stricter than the plugins in three points only: keys are case-sensitive, null is not a value, and a list must
have a cniVersion that exists.
Unknown keys are allowed where the specification allows them: in a plugin's own object, in `ipam`, `args` and what the
runtime puts in. Smaller objects, such as a route or a range, belong to one plugin and have its keys alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from cni.explain.catalog import CatalogEntry
from cni.explain.common_keys import GIVEN, ListConf, capabilities, field_of, table_of
from cni.skel.config import Config, Field, Settings
from cni.spec import version

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
LISTS = "conflist"
_FREE = ("ipam", "args", "runtimeConfig", "dns", "cni")  # objects in which unknown keys are allowed

_ADDRESS = r"[0-9A-Fa-f.:]+"
_TYPES: dict[str, Schema] = {
    "string": {"type": "string"},
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer"},
    "object": {"type": "object"},
    "route": {"type": "object", "required": ["dst"]},
    "DNS settings": {"type": "object"},
    "IP address": {"type": "string", "pattern": f"^({_ADDRESS})?$"},
    "CIDR": {"type": "string", "pattern": f"^{_ADDRESS}/[0-9]+$"},
}


def of_lists(plugins: Iterable[CatalogEntry]) -> Schema:
    """Return the schema of a network's list, which chooses the schema of each plugin by its `type`."""
    plugins = list(plugins)
    schema = _object(ListConf, free=True)
    properties = schema["properties"]
    properties["cniVersion"]["enum"] = list(version.ALL)
    properties["cniVersions"]["items"]["enum"] = list(version.ALL)
    for key in ("disableCheck", "disableGC", "loadOnlyInlinedPlugins"):
        properties[key] |= {"type": ["boolean", "string"], "enum": [True, False, "true", "false"]}
    properties["plugins"] |= {"minItems": 1, "items": {"$ref": "#/definitions/plugin"}}
    in_lists = [entry for entry in plugins if entry.plugin.place != "ipam"]
    definitions = {entry.name: _plugin(entry) for entry in in_lists}
    choice = _by_type(in_lists, "any plugin, by its file name")
    return {
        "$schema": DRAFT,
        "title": "CNI network configuration list",
        **schema,
        "required": ["cniVersion", "name", "plugins"],
        "definitions": {"plugin": choice, **definitions, **_ipam_definitions(plugins)},
    }


def of_plugin(entry: CatalogEntry, plugins: Iterable[CatalogEntry]) -> Schema:
    """Return the schema of a plugin's object, `ipam` included. `plugins` are those that `ipam` may name."""
    schema = _plugin(entry)
    uses_ipam = "#/definitions/ipam" in str(schema)
    return {
        "$schema": DRAFT,
        "title": f"Configuration of the CNI plugin {entry.name}",
        **schema,
        **({"definitions": _ipam_definitions(plugins)} if uses_ipam else {}),
    }


def _plugin(entry: CatalogEntry) -> Schema:
    plugin = entry.plugin
    schema = _object(plugin.config, free=True, skip=GIVEN)
    properties = schema["properties"]
    properties["type"] = {"const": entry.name, "description": entry.summary}
    properties["cniVersion"]["enum"] = list(plugin.versions)
    properties["capabilities"] |= _capabilities(plugin)
    if plugin.place == "ipam":  # the object in the file is an interface plugin's
        properties["type"] = {"type": "string", "description": Config.type.meaning}
        properties["ipam"]["properties"]["type"] = {"const": entry.name, "description": entry.summary}
    elif field_of(plugin.config, "ipam") is Config.ipam:
        properties["ipam"] = {"description": Config.ipam.meaning, "allOf": [{"$ref": "#/definitions/ipam"}]}
    return {"description": entry.summary, **schema, "required": ["type"]}


def _capabilities(plugin: Any) -> Schema:
    """Return a schema that offers the plugin's capabilities and allows all, because the IPAM plugin may take others."""
    own = capabilities(plugin) or {}
    return {"properties": {name: {"type": "boolean", "description": meaning} for name, meaning in own.items()}}


def _ipam_definitions(plugins: Iterable[CatalogEntry]) -> dict[str, Schema]:
    """Return the sections of the IPAM plugins, and the schema that chooses one of them by its `type`."""
    ipams = [entry for entry in plugins if entry.plugin.place == "ipam"]
    sections = {}
    for entry in ipams:
        field = field_of(entry.plugin.config, "ipam")
        table = table_of(field) if field else None
        section = _object(table or Settings, free=True)
        section["properties"]["type"] = {"const": entry.name, "description": entry.summary}
        sections[f"ipam-{entry.name}"] = {"description": entry.summary, **section}
    return {"ipam": _by_type(ipams, "any IPAM plugin, by its file name", "ipam-", required=False), **sections}


def _by_type(entries: Sequence[CatalogEntry], meaning: str, prefix: str = "", *, required: bool = True) -> Schema:
    """Return the schema of an object that follows the definition of its `type`, and with an unknown type none."""
    conditions = [
        {
            "if": {"properties": {"type": {"const": entry.name}}, "required": ["type"]},
            "then": {"$ref": f"#/definitions/{prefix}{entry.name}"},
        }
        for entry in entries
    ]
    names = [{"const": entry.name, "description": entry.summary} for entry in entries]
    return {
        "type": "object",
        "properties": {"type": {"description": meaning, "anyOf": [*names, {"type": "string"}]}},
        **({"required": ["type"]} if required else {}),
        "allOf": conditions,
    }


def _object(table: type[Settings], *, free: bool, skip: Iterable[str] = ()) -> Schema:
    properties = {field.key: _described(field) for field in table.fields() if field.key not in skip}
    return {"type": "object", "properties": properties, **({} if free else {"additionalProperties": False})}


def _described(field: Field[Any, Any]) -> Schema:
    words = "; ".join(filter(None, (field.meaning, field.constraint)))
    described = {"description": words, **_value(field)}
    default = field.default
    if isinstance(default, (bool, int, str)) and default != "":
        described["default"] = default
    return described


def _value(field: Field[Any, Any], key: str = "") -> Schema:
    """Return the schema of a field's values."""
    if field.item and field.kind.startswith("map"):
        return {"type": "object", "additionalProperties": _value(field.item, field.key)}
    if field.item:
        return {"type": "array", "items": _value(field.item, field.key or key)}
    schema = dict(_TYPES.get(field.kind, {}))
    if table := table_of(field):
        schema |= _object(table, free=getattr(field, "key", key) in _FREE)
    if field.choices:
        schema["enum"] = ["", *field.choices] if field.blank else list(field.choices)
    minimum, maximum = field.bounds
    schema |= {} if minimum is None else {"minimum": minimum}
    return schema | ({} if maximum is None else {"maximum": maximum})
