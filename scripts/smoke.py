"""Try an installed wheel: install the plugins as executables; attach, check, use and detach a namespace.

    python smoke.py

It needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and no program except Python, so it also runs in the images that wheels
are built in. Everything happens on a temporary node: a network and a mount namespace of this process.
"""

import ctypes
import json
import os
import socket
import subprocess
import sys
import sysconfig

CLONE_NEWNS, CLONE_NEWNET = 0x20000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
CONFIG = {
    "cniVersion": "1.1.0",
    "name": "smoke",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "smoke0",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.123.0.0/24"}], [{"subnet": "fd12::/64"}]]},
        },
        {"type": "loopback"},
    ],
}


def private_node() -> None:
    """Give this process a network namespace of its own, and empty folders where plugins write to."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function: str, *arguments: object) -> None:
        if getattr(libc, function)(*arguments):
            number = ctypes.get_errno()
            raise OSError(number, f"{function}: {os.strerror(number)}")

    call("unshare", CLONE_NEWNS | CLONE_NEWNET)
    call("mount", b"none", b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    for folder in ("/run/cni", "/run/netns", "/var/lib/cni", "/opt/cni"):
        os.makedirs(folder, exist_ok=True)
        call("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", ctypes.c_ulong(0), None)


def run(*command: str) -> str:
    """Return the output of a program. If it fails, exit with its messages."""
    completed = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if completed.returncode:
        sys.exit(f"{command} ended with {completed.returncode}\n{completed.stdout}{completed.stderr}")
    return completed.stdout


def expect(condition: object, text: str) -> None:
    """Exit with an error unless the condition, described by `text`, holds."""
    if not condition:
        sys.exit(f"expected, but not true: {text}")


def reaches(source, target, address) -> bool:
    """Return True if a TCP connection from one namespace to another succeeds; raise OSError if it fails."""
    with socket.socket(fileno=target.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.bind(("", 8080))
        listener.listen()
        with socket.socket(fileno=source.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.settimeout(60)
            client.connect((address, 8080))
    return True


def main() -> None:
    private_node()
    from cni import _nftables
    from cni.invoke import launcher
    from cni.kernel.netns import NetNS

    expect(_nftables.ffi, "libnftables has the functions that we call")
    expect(os.path.realpath(launcher.PACKAGES).startswith(os.path.realpath(sys.prefix)), "the installation is imported")
    scripts = sysconfig.get_path("scripts")
    os.environ.update(CNI_PATH="/opt/cni/bin", NETCONFPATH="/opt/cni/net.d")
    run(f"{scripts}/cni", "install", "--dir", "/opt/cni/bin")
    os.makedirs("/opt/cni/net.d")
    with open("/opt/cni/net.d/10-smoke.conflist", "w") as file:
        json.dump(CONFIG, file)
    with open("/proc/sys/net/ipv6/conf/default/accept_dad", "w") as file:
        file.write("0")
    with NetNS.create("one") as first, NetNS.create("two") as second:
        addresses = []
        for netns in (first, second):
            result = json.loads(run(f"{scripts}/cnitool", "add", "smoke", netns.path))
            addresses.append(result["ips"][0]["address"].partition("/")[0])
            run(f"{scripts}/cnitool", "check", "smoke", netns.path)
        expect(reaches(first, second, addresses[1]), "the first namespace reaches the second")
        for netns in (first, second):
            run(f"{scripts}/cnitool", "del", "smoke", netns.path)
    reserved = [name for name in os.listdir("/var/lib/cni/networks/smoke") if name[0].isdigit()]
    expect(not reserved, f"no address is reserved any more ({reserved})")
    print(f"Python {sys.version.split()[0]}: attached, checked, connected, detached")


if __name__ == "__main__":
    main()
