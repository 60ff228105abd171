"""note: a chained plugin that records which container got which addresses."""

from __future__ import annotations

from cni.skel import INVALID_NETWORK_CONFIG, CNIError, Config, Plugin, Request, Result, Text


class NoteConf(Config):
    """The keys of note, in addition to those of every plugin."""

    file = Text("/run/cni-notes", "the file that gets a line for each ADD and DEL")


def add(request: Request[NoteConf]) -> Result:
    """Record the addresses, and return the result of the plugins before this one."""
    if request.prev_result is None:
        raise CNIError("note must come after a plugin that makes an interface", INVALID_NETWORK_CONFIG)
    write(request, *(str(ip.address) for ip in request.prev_result.ips))
    return request.prev_result


def delete(request: Request[NoteConf]) -> None:
    """Record the end. DEL must succeed even if namespace, interface and prevResult are missing."""
    write(request)


def write(request: Request[NoteConf], *addresses: str) -> None:
    with open(request.config.file, "a") as notes:
        print(request.command, request.container_id, request.ifname, *addresses, file=notes)


plugin = Plugin("note", config=NoteConf, add=add, delete=delete, about="CNI note plugin 1.0")

if __name__ == "__main__":
    plugin.main()
