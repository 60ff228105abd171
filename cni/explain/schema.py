"""JSON Schemas (draft 7, which editors know best) from the plugins' tables, for editors to complete and check by.

They are no stricter than the plugins, but for this: keys count as written, null is no value, and a list says its
cniVersion, one that there is.
Unknown keys are allowed where the specification allows them: a plugin's own object, `ipam`, `args` and what the
runtime puts in are free. Smaller objects, a route or a range, belong to one plugin, and have its keys alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cni.explain.known import Known
from cni.explain.tables import GIVEN, ListConf, capabilities, field_of, table_of
from cni.skel.config import Config, Field, Settings
from cni.spec import version

Schema = dict[str, Any]

DRAFT = "http://json-schema.org/draft-07/schema#"
LISTS = "conflist"
_FREE = ("ipam", "args", "runtimeConfig", "dns", "cni")  # objects that may have others' keys

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


def of_lists(known: Iterable[Known]) -> Schema:
    """The schema of a network's list, which chooses each plugin's by its `type`."""
    known = list(known)
    schema = _object(ListConf, free=True)
    properties = schema["properties"]
    properties["cniVersion"]["enum"] = list(version.ALL)
    properties["cniVersions"]["items"]["enum"] = list(version.ALL)
    for key in ("disableCheck", "disableGC", "loadOnlyInlinedPlugins"):
        properties[key] |= {"type": ["boolean", "string"], "enum": [True, False, "true", "false"]}
    properties["plugins"] |= {"minItems": 1, "items": {"$ref": "#/definitions/plugin"}}
    in_lists = [one for one in known if one.plugin.place != "ipam"]
    definitions = {one.name: _plugin(one) for one in in_lists}
    choice = _by_type(in_lists, "any plugin, by its file name")
    return {
        "$schema": DRAFT,
        "title": "CNI network configuration list",
        **schema,
        "required": ["cniVersion", "name", "plugins"],
        "definitions": {"plugin": choice, **definitions, **_ipam_definitions(known)},
    }


def of_plugin(one: Known, known: Iterable[Known]) -> Schema:
    """The schema of one plugin's object, `ipam` included."""
    schema = _plugin(one)
    uses_ipam = "#/definitions/ipam" in str(schema)
    return {
        "$schema": DRAFT,
        "title": f"Configuration of the CNI plugin {one.name}",
        **schema,
        **({"definitions": _ipam_definitions(known)} if uses_ipam else {}),
    }


def _plugin(one: Known) -> Schema:
    plugin = one.plugin
    schema = _object(plugin.config, free=True, skip=GIVEN)
    properties = schema["properties"]
    properties["type"] = {"const": one.name, "description": one.summary}
    properties["cniVersion"]["enum"] = list(plugin.versions)
    properties["capabilities"] |= _capabilities(plugin)
    if plugin.place == "ipam":  # the file's object is the interface plugin's
        properties["type"] = {"type": "string", "description": Config.type.meaning}
        properties["ipam"]["properties"]["type"] = {"const": one.name, "description": one.summary}
    elif field_of(plugin.config, "ipam") is Config.ipam:
        properties["ipam"] = {"description": Config.ipam.meaning, "allOf": [{"$ref": "#/definitions/ipam"}]}
    return {"description": one.summary, **schema, "required": ["type"]}


def _capabilities(plugin: Any) -> Schema:
    """Every capability may be given, as the IPAM plugin may know it; those of the plugin are there to choose from."""
    known = capabilities(plugin) or {}
    return {"properties": {name: {"type": "boolean", "description": meaning} for name, meaning in known.items()}}


def _ipam_definitions(known: Iterable[Known]) -> dict[str, Schema]:
    """The choice of an IPAM plugin's section by its `type`, and the sections."""
    ipams = [one for one in known if one.plugin.place == "ipam"]
    sections = {}
    for one in ipams:
        field = field_of(one.plugin.config, "ipam")
        table = table_of(field) if field else None
        section = _object(table or Settings, free=True)
        section["properties"]["type"] = {"const": one.name, "description": one.summary}
        sections[f"ipam-{one.name}"] = {"description": one.summary, **section}
    return {"ipam": _by_type(ipams, "any IPAM plugin, by its file name", "ipam-", required=False), **sections}


def _by_type(known: Iterable[Known], meaning: str, prefix: str = "", *, required: bool = True) -> Schema:
    """An object that follows the definition its `type` names; a stranger's may have any keys."""
    known = list(known)
    conditions = [
        {
            "if": {"properties": {"type": {"const": one.name}}, "required": ["type"]},
            "then": {"$ref": f"#/definitions/{prefix}{one.name}"},
        }
        for one in known
    ]
    names = {"anyOf": [{"const": one.name, "description": one.summary} for one in known] + [{"type": "string"}]}
    return {
        "type": "object",
        "properties": {"type": {"description": meaning, **names}},
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
    """What values a field takes, whatever it is called."""
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
