"""The file of a network, read as far as possible, and the findings in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cni.explain.catalog import CatalogEntry, plugins
from cni.explain.common_keys import capabilities
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
    """The object of a plugin, at ``base`` in a file. ``entry`` and ``ipam`` are None if there is no table here."""

    def __init__(self, document: Document, file: str, base: str, value: Any) -> None:
        self.document = document
        self.file = file
        self.base = base
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}
        self.type = text(self.value, "type")
        self.ipam_section = section(self.value, "ipam")
        self.ipam_type = text(self.ipam_section, "type")
        entries = plugins()[0]
        self.entry: CatalogEntry | None = entries.get(self.type)
        self.ipam: CatalogEntry | None = entries.get(self.ipam_type)

    @property
    def place(self) -> str:
        """The plugin's place in a network, as in skel.Plugin."""
        return self.entry.plugin.place if self.entry else ""

    @property
    def types(self) -> list[tuple[str, str, CatalogEntry | None]]:
        """The plugins that the object names: name, path, and entry in the catalog."""
        ipam = [(self.ipam_type, "ipam.type", self.ipam)] if self.ipam_type else []
        return [(self.type, "type", self.entry), *ipam]

    @property
    def conf(self) -> Any:
        """The plugin's configuration by its table; None without a table, or if it is wrong, which others report."""
        try:
            return self.entry.plugin.config.parse(self.value) if self.entry else None
        except CNIError:
            return None

    @property
    def has_foreign_ipam(self) -> bool:
        return bool(self.ipam_type and not self.ipam)

    @property
    def delegate(self) -> Part | None:
        """The configuration that flannel passes on, with its type."""
        if self.type != "flannel":
            return None
        value = {"type": "bridge", **section(self.value, "delegate")}
        return Part(self.document, self.file, joined(self.base, "delegate"), value)

    @property
    def granted(self) -> list[str]:
        """The capabilities that the configuration asks for."""
        return [name for name, on in section(self.value, "capabilities").items() if on is True]

    @property
    def takes(self) -> dict[str, str] | None:
        """The capabilities that the plugin takes; None if these are unknown."""
        if self.entry is None or self.has_foreign_ipam:
            return None
        return capabilities(self.entry.plugin, self.ipam.plugin if self.ipam else None)


def text(obj: dict[str, Any], key: str) -> str:
    """Return the string at a key; "" for anything else."""
    value = gojson.get(obj, key)
    return value if isinstance(value, str) else ""


def section(obj: dict[str, Any], key: str) -> dict[str, Any]:
    """Return the object at a key; an empty one for anything else."""
    value = gojson.get(obj, key)
    return value if isinstance(value, dict) else {}


class Network:
    """A file with a network: its plugins, its name and version ("" if they cannot be read), and the findings."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.findings: list[Finding] = []
        self.parts: list[Part] = []
        self.document = self._document(file)
        value = self.document.value if self.document else None
        self.value: dict[str, Any] = value if isinstance(value, dict) else {}
        # The content decides for a file without any of the extensions that runtimes look for, such as /dev/stdin.
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
        """Add a problem of the network, or of one of its plugins, whose path then begins at the plugin's object."""
        document, file = (part.document, part.file) if part else (self.document, self.file)
        if part:
            problem = replace(problem, path=joined(part.base, problem.path))
        if document is None:
            self.findings.append(Finding(file, problem))
            return
        line, column = document.position(problem.path, of_key=problem.is_key)
        self.findings.append(Finding(file, problem, line, column, document.line(line)))

    @property
    def executed(self) -> list[Part]:
        """The plugins that will be executed: those of the list, and those that these delegate to."""
        return [executed for part in self.parts for executed in (part, part.delegate) if executed]

    def load(self) -> NetworkConfigList:
        """Load the network as runtimes do. Raises CNIError."""
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
        """Return the content of a file. If it cannot be read, add a finding and return None."""
        try:
            with open(file, "rb") as opened:
                document = Document(opened.read())
        except OSError as error:
            self.findings.append(Finding(file, Problem("file", "", f"cannot be read: {error.strerror}")))
            return None
        except Malformed as error:
            problem = Problem("json", "", f"this is not JSON: {error.msg}")
            self.findings.append(Finding(file, problem, error.line, error.column, error.excerpt))
            return None
        return document

    @property
    def documents(self) -> Iterable[tuple[str, Document]]:
        """The files that the network is read from, with their content."""
        own = [(self.file, self.document)] if self.document else []
        return dict([*own, *((part.file, part.document) for part in self.parts)]).items()

    def _own_text(self, key: str) -> str:
        if not self.is_list:
            return text(self.value, key)
        value = self.value.get(key)  # the keys of a list are case-sensitive
        return value if isinstance(value, str) else ""

    def _version(self) -> str:
        """Return the version that plugins are called with, chosen as cni.runtime chooses it."""
        offered = self.value.get("cniVersions") if self.is_list else None
        supported = [text for text in offered if text in version.ALL] if isinstance(offered, list) else []
        if supported and self.stated_version in version.ALL:
            supported.append(self.stated_version)
        return max(supported, key=version.parse, default=self.stated_version or version.OLDEST)

    def _inlined(self, document: Document) -> list[Part]:
        elements = self.value.get("plugins")
        objects = elements if isinstance(elements, list) else []
        return [Part(document, self.file, f"plugins[{index}]", value) for index, value in enumerate(objects)]

    @property
    def folder(self) -> str:
        """The folder of further plugins, beside the file and named after the network; "" if there is none."""
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
        documents = [(file, self._document(file)) for file in files]
        return [Part(document, file, "", document.value) for file, document in documents if document]
