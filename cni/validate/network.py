"""A network's file, read as far as it can be, and what is found in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from cni.explain.known import Known, plugins
from cni.explain.tables import capabilities
from cni.runtime.conf import (
    FOLDER_EXTENSIONS,
    LIST_EXTENSIONS,
    SINGLE_EXTENSIONS,
    NetworkConfigList,
    PluginConfig,
    config_files,
)
from cni.spec import gojson, version
from cni.spec.errors import CNIError
from cni.validate.document import Document, Malformed, joined
from cni.validate.findings import Finding, Problem

EXTENSIONS = LIST_EXTENSIONS + SINGLE_EXTENSIONS


class Part:
    """One plugin's object, at ``base`` in a file; ``known`` and ``ipam`` are the plugins, where there are tables."""

    def __init__(self, document: Document, file: str, base: str, value: Any) -> None:
        self.document = document
        self.file = file
        self.base = base
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}
        self.type = text(self.value, "type")
        self.ipam_section = section(self.value, "ipam")
        self.ipam_type = text(self.ipam_section, "type")
        found = plugins()[0]
        self.known: Known | None = found.get(self.type)
        self.ipam: Known | None = found.get(self.ipam_type)

    @property
    def place(self) -> str:
        """As of skel.Plugin."""
        return self.known.plugin.place if self.known else ""

    @property
    def types(self) -> list[tuple[str, str, Known | None]]:
        """The plugins that it names: name, path, and what is known."""
        ipam = [(self.ipam_type, "ipam.type", self.ipam)] if self.ipam_type else []
        return [(self.type, "type", self.known), *ipam]

    @property
    def conf(self) -> Any:
        """The plugin's configuration by its table; None where it has none, or is wrong, which is told elsewhere."""
        try:
            return self.known.plugin.config.parse(self.value) if self.known else None
        except CNIError:
            return None

    @property
    def has_strange_ipam(self) -> bool:
        return bool(self.ipam_type and not self.ipam)

    @property
    def delegate(self) -> Part | None:
        """What flannel passes on, with the type that it then has."""
        if self.type != "flannel":
            return None
        value = {"type": "bridge", **section(self.value, "delegate")}
        return Part(self.document, self.file, joined(self.base, "delegate"), value)

    @property
    def granted(self) -> list[str]:
        """The capabilities it has."""
        return [name for name, on in section(self.value, "capabilities").items() if on is True]

    @property
    def takes(self) -> dict[str, str] | None:
        """The capabilities it knows; None where that cannot be told."""
        if self.known is None or self.has_strange_ipam:
            return None
        return capabilities(self.known.plugin, self.ipam.plugin if self.ipam else None)


def text(obj: dict[str, Any], key: str) -> str:
    """A string in an object; "" for what is none."""
    value = gojson.get(obj, key)
    return value if isinstance(value, str) else ""


def section(obj: dict[str, Any], key: str) -> dict[str, Any]:
    """An object in an object; an empty one for what is none."""
    value = gojson.get(obj, key)
    return value if isinstance(value, dict) else {}


class Network:
    """A file with a network: its plugins, its name and version ("" where they cannot be read), and the findings."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self.parts: list[Part] = []
        self.document = self._document(file)
        value = self.document.value if self.document else None
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}
        # Of a file that is not called as runtimes want it, such as /dev/stdin, the content tells.
        self.is_list = file.endswith(LIST_EXTENSIONS) or ("plugins" in self.value and not file.endswith(EXTENSIONS))
        self.name = self._own_text("name")
        self.stated_version = self._own_text("cniVersion")
        self.version = self._version()
        if not self.document:
            return
        if not isinstance(value, dict):
            self.report(Problem("value", "", str(gojson.mistyped(value, "", "an object"))))
        elif self.is_list:
            self.parts = [*self._inlined(self.document), *self._from_folder()]
        else:
            self.parts = [Part(self.document, file, "", value)]

    @property
    def is_readable(self) -> bool:
        return self.document is not None and bool(self.value)

    @property
    def has_errors(self) -> bool:
        return any(finding.is_error for finding in self.findings)

    def report(self, problem: Problem, part: Part | None = None) -> None:
        """A problem of the network's, or of one of its plugins: then the path begins at that one's object."""
        document, file = (part.document, part.file) if part else (self.document, self.file)
        if part:
            problem.path = joined(part.base, problem.path)
        if document is None:
            self.findings.append(Finding(file, problem))
            return
        line, column = document.position(problem.path, of_key=problem.is_key)
        self.findings.append(Finding(file, problem, line, column, document.line(line)))

    @property
    def asked(self) -> list[Part]:
        """All plugins that are asked: those of the list, and those that these delegate to."""
        return [part for each in self.parts for part in (each, each.delegate) if part]

    def load(self) -> NetworkConfigList:
        """The network as runtimes load it. Raises CNIError."""
        data = self.document.text.encode() if self.document else b""
        if not self.is_list:
            return NetworkConfigList.from_plugin(PluginConfig.from_bytes(data))
        network = NetworkConfigList.from_bytes(data)
        network.plugins = [
            *network.plugins,
            *(PluginConfig.from_file(part.file) for part in self.parts if not part.base),
        ]
        return network

    def _document(self, file: str) -> Document | None:
        """A file's content; None, and a finding, where it has none."""
        try:
            with open(file, "rb") as opened:
                document = Document(opened.read())
        except OSError as error:
            self.findings.append(Finding(file, Problem("file", "", f"cannot be read: {error.strerror}")))
            return None
        except Malformed as error:
            problem = Problem("json", "", f"this is no JSON: {error.msg}")
            self.findings.append(Finding(file, problem, error.line, error.column, error.excerpt))
            return None
        return document

    @property
    def documents(self) -> Iterable[tuple[str, Document]]:
        """All that the network is read from, by file."""
        own = [(self.file, self.document)] if self.document else []
        return dict([*own, *((part.file, part.document) for part in self.parts)]).items()

    def _own_text(self, key: str) -> str:
        if not self.is_list:
            return text(self.value, key)
        value = self.value.get(key)  # of a list keys count as written
        return value if isinstance(value, str) else ""

    def _version(self) -> str:
        """The one that the plugins are asked in, as a runtime of ours chooses it."""
        offered = self.value.get("cniVersions") if self.is_list else None
        known = [one for one in offered if one in version.ALL] if isinstance(offered, list) else []
        if known and self.stated_version in version.ALL:
            known.append(self.stated_version)
        return max(known, key=version.parse, default=self.stated_version or version.OLDEST)

    def _inlined(self, document: Document) -> list[Part]:
        elements = self.value.get("plugins")
        objects = elements if isinstance(elements, list) else []
        return [Part(document, self.file, f"plugins[{number}]", one) for number, one in enumerate(objects)]

    @property
    def folder(self) -> str:
        """Of further plugins: beside the file, and named after the network; "" where there is none."""
        if self.name in ("", ".", "..") or "/" in self.name or "\0" in self.name:
            return ""
        folder = os.path.join(os.path.dirname(self.file), self.name)
        return folder if os.path.isdir(folder) else ""

    @property
    def loads_folder(self) -> bool:
        return str(self.value.get("loadOnlyInlinedPlugins")).lower() != "true"

    def _from_folder(self) -> list[Part]:
        if not self.folder or not self.loads_folder:
            return []
        files = config_files(self.folder, FOLDER_EXTENSIONS)
        found = [(file, self._document(file)) for file in files]
        return [Part(document, file, "", document.value) for file, document in found if document]
