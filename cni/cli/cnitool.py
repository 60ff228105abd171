"""cnitool: run a network configuration on a namespace by hand, with the command line of the Go tool."""

from __future__ import annotations

import os
import sys

from cni.netfilter.naming import hashed
from cni.runtime import CNI, RuntimeConf, load_network_list
from cni.runtime.conf import conf_dir
from cni.spec import gojson
from cni.spec.errors import CNIError, quote
from cni.system.process import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from cni.runtime.conf import NetworkConfigList

DEFAULT_IFNAME = "eth0"

USAGE = """\
Usage: cnitool [-i IFNAME] add|check|del|gc|status NETWORK NETNS

Runs the plugins of a network on a network namespace that is already there.

  add      attach the namespace and print the result
  check    ask whether the attachment is still as add left it
  del      detach the namespace
  gc       detach whatever is attached to the network, and clean up after it
  status   ask whether the network is ready for add
  help     print this text

  -i, --ifname IFNAME   the interface's name (default: $CNI_IFNAME, or else eth0)
  -h, --help            print this text

Environment:
  NETCONFPATH      folder of the network configurations (default: /etc/cni/net.d)
  CNI_PATH         folders of the plugins, separated by colons
  CAP_ARGS         arguments of the capabilities, a JSON object
  CNI_ARGS         arguments of the plugins, KEY=VALUE;KEY=VALUE
  CNI_IFNAME       the interface's name
  CNI_CONTAINERID  the container's id (default: one that follows from NETNS)
"""


class _Misuse(Exception):
    """A command line that is not understood."""


def main(argv: Sequence[str] | None = None, cache_dir: str = "") -> int:
    """Run one command, and return the exit status, 0 or 1. ``argv`` is without the program's name.

    ``cache_dir`` is the folder of the result cache, /var/lib/cni by default.
    """
    try:
        words, ifname = _options(sys.argv[1:] if argv is None else argv)
        if words[:1] == ["help"]:
            sys.stdout.write(USAGE)
            return 0
        verb, name, netns = _command(words)
        network, rt = _prepare(name, netns, ifname)
        path = os.environ.get("CNI_PATH")
        verb(CNI(path.split(os.pathsep) if path else [], cache_dir), network, rt)
        return 0
    except _Misuse as error:
        sys.stderr.write(f"Error: {error}\n{USAGE}")
    except (CNIError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        if os.geteuid():
            sys.stderr.write("cnitool was not run as root, which attaching takes\n")
    except KeyboardInterrupt:
        return 130  # as shells report it: 128 plus the signal's number
    return 1


def _options(argv: Sequence[str]) -> tuple[list[str], str]:
    """Return the words and the interface's name; options may stand anywhere before ``--``."""
    words: list[str] = []
    ifname = ""
    rest = iter(argv)
    for word in rest:
        if word == "--":
            words += rest
        elif word in ("-h", "--help"):
            return ["help"], ""
        elif word in ("-i", "--ifname"):
            value = next(rest, None)
            if value is None:
                raise _Misuse(f"{word} needs the name of an interface")
            ifname = value
        elif word.startswith("--ifname="):
            ifname = word.removeprefix("--ifname=")
        elif word.startswith("-i"):
            ifname = word.removeprefix("-i").removeprefix("=")
        elif word.startswith("-") and word != "-":
            raise _Misuse(f"unknown option {word}")
        else:
            words.append(word)
    return words, ifname


def _command(words: list[str]) -> tuple[Callable[[CNI, NetworkConfigList, RuntimeConf], None], str, str]:
    if not words:
        raise _Misuse("no command was given")
    if words[0] not in VERBS:
        raise _Misuse(f'unknown command {quote(words[0])} for "cnitool"')
    if len(words) < 3:
        raise _Misuse(f"{words[0]} needs the names of a network and of a namespace")
    return VERBS[words[0]], words[1], words[2]


def _prepare(name: str, netns: str, ifname: str) -> tuple[NetworkConfigList, RuntimeConf]:
    environ = os.environ
    network = load_network_list(conf_dir(), name)
    capability_args = _capability_args(environ.get("CAP_ARGS", ""))
    args = _args(environ.get("CNI_ARGS", ""))
    ifname = ifname or environ.get("CNI_IFNAME") or DEFAULT_IFNAME
    netns = os.path.abspath(netns) if netns else ""
    # Without CNI_CONTAINERID the id follows from the namespace, so that del finds the attachment that add made.
    container_id = environ.get("CNI_CONTAINERID") or hashed(netns, len("cnitool-") + 20, "cnitool-")
    return network, RuntimeConf(container_id, netns, ifname, args, capability_args)


def _capability_args(text: str) -> dict[str, Any]:
    if not text:
        return {}
    try:
        value = gojson.loads(text)
        return {} if value is None else gojson.table(value, "")
    except (ValueError, CNIError) as error:
        raise CNIError(f"CAP_ARGS: {error}") from error


def _args(text: str) -> list[tuple[str, str]]:
    return [_pair(pair) for pair in text.split(";")] if text else []


def _pair(text: str) -> tuple[str, str]:
    match text.split("="):
        case [key, value] if key and value:
            return key, value
    raise CNIError(f"invalid CNI_ARGS pair {quote(text)}")


def _add(cni: CNI, network: NetworkConfigList, rt: RuntimeConf) -> None:
    result = cni.add(network, rt)
    write_all(1, result.text(result.version).encode(errors="replace"))  # JSON is UTF-8, whatever the locale


def _check(cni: CNI, network: NetworkConfigList, rt: RuntimeConf) -> None:
    cni.check(network, rt)


def _delete(cni: CNI, network: NetworkConfigList, rt: RuntimeConf) -> None:
    cni.delete(network, rt)


def _gc(cni: CNI, network: NetworkConfigList, _: RuntimeConf) -> None:
    cni.gc(network)


def _status(cni: CNI, network: NetworkConfigList, _: RuntimeConf) -> None:
    cni.status(network)


VERBS: dict[str, Callable[[CNI, NetworkConfigList, RuntimeConf], None]] = {
    "add": _add,
    "check": _check,
    "del": _delete,
    "gc": _gc,
    "status": _status,
}


if __name__ == "__main__":
    sys.exit(main())
