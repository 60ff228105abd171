"""The packet filter rules of the attachments on this node: find the missing ones, and restore them.

Someone may flush them (``nft flush ruleset``, ``iptables -F``, ``firewall-cmd --reload``). Which attachments there are,
and what they were given, is in the runtimes' caches; which rules that takes, the plugins of their networks say, by the
same description that ADD follows. All rules are restored in one transaction for each backend and family: there is no
moment at which some containers are protected and others are not. Then all rules are checked again.

Rules of other programs are not touched, and where nothing is missing nothing is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from cni.invoke import exec as invoke
from cni.invoke import registry
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.netfilter.ruleset import Present, Ruleset
from cni.node.pools import Warn
from cni.node.staleness import Remembered
from cni.runtime.attachment import RuntimeConf
from cni.runtime.cache import ResultCache
from cni.runtime.conf import NetworkConfigList, conf_dir, load_networks, plugin_path
from cni.runtime.operations import plugin_config
from cni.skel.plugin import Plugin
from cni.skel.request import Request
from cni.spec.errors import CNIError

_FAILURES = (CNIError, OSError, ValueError)


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)


class AttachmentRules:
    """The rules that a live attachment must have, and which of them were missing.

    `failure` says why they could not be found out or restored.
    """

    def __init__(self, remembered: Remembered, default_backend: str) -> None:
        self.remembered = remembered
        self.rules = Ruleset(default_backend=default_backend)
        self.missing: list[str] = []
        self.failure = ""
        self.is_restored = False
        self._calls: list[tuple[Plugin, Request]] = []

    def describe(self, cache: ResultCache, configured: Iterable[NetworkConfigList], open_requests: ExitStack) -> None:
        """Ask the plugins of the network which rules the attachment must have. Raises CNIError."""
        attachment, network = self.remembered.attachment, self.remembered.network(configured)
        result = cache.result(attachment.network, attachment.container_id, attachment.ifname, network.cni_version)
        if result is None:
            raise CNIError("its result is not remembered")
        netns = self.remembered.netns
        rt = RuntimeConf(attachment.container_id, netns, attachment.ifname, attachment.args, attachment.capability_args)
        environ = invoke.environment(
            "ADD",
            container_id=attachment.container_id,
            netns=netns,
            ifname=attachment.ifname,
            args=";".join(f"{key}={value}" for key, value in attachment.args),
            paths=plugin_path(),
        )
        for config in network.plugins:
            plugin = registry.installed(config.type)
            if plugin and plugin.rules:
                request = plugin.request(environ, plugin_config(network, config, rt, result), _to_stderr)
                self._calls.append((plugin, open_requests.enter_context(request)))
                plugin.rules(request, self.rules)

    def find_missing(self, present: Present) -> list[str]:
        """Return the rules that are missing now; note a failure."""
        try:
            return self.rules.missing(present)
        except _FAILURES as error:
            self.failure = str(error)
            return []

    def withdraw(self) -> None:
        """Repeat what DEL does, because the rules were restored after it. Raises CNIError, OSError."""
        for plugin, request in reversed(self._calls):
            outcome = plugin.serve({**request.environ, "CNI_COMMAND": "DEL"}, request.read_stdin, _to_stderr)
            if outcome.error:
                raise outcome.error

    def as_dict(self) -> dict[str, Any]:
        """Return everything for a program."""
        failure = {"failure": self.failure} if self.failure else {}
        return {**self.remembered.names(), "missing": self.missing, "restored": self.is_restored, **failure}


def examine(cache_dirs: Iterable[str], warn: Warn) -> list[AttachmentRules]:
    """Find the missing rules of all live attachments in these caches. Raises CNIError, OSError."""
    with ExitStack() as open_requests:
        attachments = _live(cache_dirs, open_requests, warn)
        _find_missing(attachments)
    return attachments


def restore(cache_dirs: Iterable[str], warn: Warn) -> list[AttachmentRules]:
    """Restore the missing rules of all live attachments in these caches. Raises CNIError, OSError."""
    with ExitStack() as open_requests:
        attachments = _live(cache_dirs, open_requests, warn)
        _find_missing(attachments)
        _restore([attachment for attachment in attachments if attachment.missing and not attachment.failure])
    return attachments


def _live(cache_dirs: Iterable[str], open_requests: ExitStack, warn: Warn) -> list[AttachmentRules]:
    configured = load_networks(conf_dir(), warn)
    # As ADD chooses.
    default_backend = "iptables" if Iptables(4).usable() or not Nft().usable() else "nftables"
    live = []
    for folder in cache_dirs:
        cache = ResultCache(folder, warn)
        for remembered in (Remembered(attachment, cache, folder) for attachment in cache.attachments()):
            if remembered.is_live:
                attachment = AttachmentRules(remembered, default_backend)
                live.append(attachment)
                try:
                    attachment.describe(cache, configured, open_requests)
                except _FAILURES as error:
                    attachment.failure = str(error)
    return live


def _find_missing(attachments: list[AttachmentRules]) -> None:
    present = Present()
    for attachment in attachments:
        if not attachment.failure:
            attachment.missing = attachment.find_missing(present)


def _restore(attachments: list[AttachmentRules]) -> None:
    """Restore all at once; if that is refused, each by itself, so that a fault of one does not stop the others."""
    together = Ruleset()
    for attachment in attachments:
        together.include(attachment.rules)
    try:
        together.commit_rules()
        rest = Ruleset.finish
    except CNIError:
        rest = Ruleset.commit
    for attachment in attachments:
        try:
            rest(attachment.rules)
        except _FAILURES as error:
            attachment.failure = str(error)
    _verify([attachment for attachment in attachments if not attachment.failure])


def _verify(attachments: list[AttachmentRules]) -> None:
    """Check that all rules are there; withdraw those of attachments that a runtime has deleted meanwhile."""
    present = Present()
    for attachment in attachments:
        try:
            if attachment.remembered.is_forgotten():
                attachment.withdraw()
                continue
        except _FAILURES as error:
            attachment.failure = f"deleted meanwhile, its rules stay: {error}"
            continue
        missing = attachment.find_missing(present)
        attachment.is_restored = not missing and not attachment.failure
        if missing:
            attachment.failure = f"still missing: {missing[0]}"
