"""``cni firewall reload``: put back what the attachments of this node have in iptables, nftables and firewalld.

To be run after someone has flushed them (``nft flush ruleset``, ``iptables -F``, ``firewall-cmd --reload``). Which
attachments there are, and what they were given, is what runtimes remember; what that comes to in rules, the plugins of
their networks say, by the same description that ADD follows. All of it is one transaction for each backend and family:
there is no moment at which some containers are protected and others not. Then everything is looked at again.

Other people's rules are not touched, and where nothing is missing nothing is changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from cni.cli.arguments import add_cache_argument, cache_dirs
from cni.invoke import exec as invoke
from cni.invoke import registry
from cni.netfilter.iptables import Iptables
from cni.netfilter.nftables import Nft
from cni.netfilter.ruleset import Present, Ruleset
from cni.node.leftovers import Remembered
from cni.node.pools import Warn
from cni.runtime.cache import ResultCache
from cni.runtime.conf import NetworkConfigList, conf_dir, load_networks, plugin_path
from cni.runtime.operations import RuntimeConf, plugin_config
from cni.skel.plugin import Plugin
from cni.skel.request import Request
from cni.spec.errors import CNIError

_FAILURES = (CNIError, OSError, ValueError)


class Attachment:
    """A living attachment: the rules it has to have, and which of them were missing."""

    def __init__(self, one: Remembered, default_backend: str) -> None:
        self.one = one
        self.rules = Ruleset(default_backend=default_backend)
        self.missing: list[str] = []
        self.failure = ""
        self.is_restored = False
        self._calls: list[tuple[Plugin, Request]] = []

    def describe(self, cache: ResultCache, configured: Iterable[NetworkConfigList], open_requests: ExitStack) -> None:
        """Ask the plugins of its network which rules it has to have. Raises CNIError."""
        then, network = self.one.attachment, self.one.network(configured)
        result = cache.result(then.network, then.container_id, then.ifname, network.cni_version)
        if result is None:
            raise CNIError("its result is not remembered")
        rt = RuntimeConf(then.container_id, self.one.netns, then.ifname, then.args, then.capability_args)
        environ = invoke.environment(
            "ADD",
            container_id=then.container_id,
            netns=self.one.netns,
            ifname=then.ifname,
            args=";".join(f"{key}={value}" for key, value in then.args),
            paths=plugin_path(),
        )
        for config in network.plugins:
            plugin = registry.installed(config.type)
            if plugin and plugin.rules:
                request = plugin.request(environ, plugin_config(network, config, rt, result), _warn)
                self._calls.append((plugin, open_requests.enter_context(request)))
                plugin.rules(request, self.rules)

    def look(self, present: Present) -> list[str]:
        """What is missing now; a failure is noted."""
        try:
            return self.rules.missing(present)
        except _FAILURES as error:
            self.failure = str(error)
            return []

    def withdraw(self) -> None:
        """What DEL does, once more: the rules came after it. Raises CNIError, OSError."""
        for plugin, request in reversed(self._calls):
            outcome = plugin.serve({**request.environ, "CNI_COMMAND": "DEL"}, request.read_stdin, _warn)
            if outcome.error:
                raise outcome.error

    def as_dict(self) -> dict[str, Any]:
        """All of it for a program."""
        failure = {"failure": self.failure} if self.failure else {}
        return {**self.one.names(), "missing": self.missing, "restored": self.is_restored, **failure}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command line of ``cni firewall``."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="COMMAND")
    meaning = "put back the rules of all living attachments"
    reloading = commands.add_parser("reload", help=meaning, description=f"{meaning.capitalize()}.")
    reloading.add_argument("--dry-run", action="store_true", help="only tell what is missing")
    reloading.add_argument("--json", action="store_true", help="tell it for a program to read")
    add_cache_argument(reloading)


def run(arguments: argparse.Namespace) -> int:
    """Do it. 0, or 1 with words on stderr for what could not be restored."""
    with ExitStack() as open_requests:
        try:
            attachments = _living(cache_dirs(arguments), open_requests, _warn)
        except (CNIError, OSError) as error:
            _warn(str(error))
            return 1
        _look(attachments)
        if not arguments.dry_run:
            _restore([each for each in attachments if each.missing and not each.failure])
    if arguments.json:
        told = {"dryRun": arguments.dry_run, "attachments": [each.as_dict() for each in attachments]}
        print(json.dumps(told, indent=2))
    else:
        _tell(attachments, dry_run=arguments.dry_run)
    return 1 if any(each.failure for each in attachments) else 0


def _warn(text: str) -> None:
    print(f"cni firewall: {text}", file=sys.stderr)


def _living(folders: list[str], open_requests: ExitStack, warn: Warn) -> list[Attachment]:
    configured = load_networks(conf_dir(), warn)
    # As ADD chooses.
    default_backend = "iptables" if Iptables(4).usable() or not Nft().usable() else "nftables"
    found = []
    for folder in folders:
        cache = ResultCache(folder, warn)
        for one in (Remembered(attachment, cache, folder) for attachment in cache.attachments()):
            if one.is_alive:
                attachment = Attachment(one, default_backend)
                found.append(attachment)
                try:
                    attachment.describe(cache, configured, open_requests)
                except _FAILURES as error:
                    attachment.failure = str(error)
    return found


def examine(folders: list[str], warn: Warn) -> list[Attachment]:
    """The living attachments that are remembered below `folders`, and what each lacks. Raises CNIError, OSError."""
    with ExitStack() as open_requests:
        attachments = _living(folders, open_requests, warn)
        _look(attachments)
    return attachments


def _look(attachments: list[Attachment]) -> None:
    present = Present()
    for each in attachments:
        if not each.failure:
            each.missing = each.look(present)


def _restore(attachments: list[Attachment]) -> None:
    """All at once; if that is refused one by one, so that what is wrong with one does not keep the others waiting."""
    together = Ruleset()
    for each in attachments:
        together.include(each.rules)
    try:
        together.commit_rules()
        rest = Ruleset.finish
    except CNIError:
        rest = Ruleset.commit
    for each in attachments:
        try:
            rest(each.rules)
        except _FAILURES as error:
            each.failure = str(error)
    _verify([each for each in attachments if not each.failure])


def _verify(attachments: list[Attachment]) -> None:
    """All is there; but for attachments that a runtime has deleted meanwhile, of which nothing is to stay."""
    present = Present()
    for each in attachments:
        try:
            if each.one.is_forgotten():
                each.withdraw()
                continue
        except _FAILURES as error:
            each.failure = f"deleted meanwhile, its rules stay: {error}"
            continue
        left = each.look(present)
        each.is_restored = not left and not each.failure
        if left:
            each.failure = f"still missing: {left[0]}"


def _tell(attachments: list[Attachment], *, dry_run: bool) -> None:
    for each in attachments:
        if each.failure:
            _warn(f"cannot restore {each.one}: {each.failure}")
        elif each.missing and (dry_run or each.is_restored):
            print(f"{'would restore' if dry_run else 'restored'} {each.one}: {len(each.missing)} were missing")
    missing = sum(bool(each.missing) and not each.failure and (dry_run or each.is_restored) for each in attachments)
    complete = sum(not each.missing and not each.failure for each in attachments)
    print(f"{missing} attachments {'would be ' if dry_run else ''}restored, {complete} had all their rules")
