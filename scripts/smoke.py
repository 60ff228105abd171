"""Try an installed wheel: the plugins as executables, a namespace attached, checked, used and detached.

    python smoke.py

Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and no program but Python: it runs in the images that wheels are built in
as well. All of it happens in a private node, a network and a mount namespace of this process, and is thrown away.
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
    """From here on this process has a network of its own, and nothing in the folders that plugins write to."""
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
    """What a program says; a failure shows why."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        sys.exit(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def expect(is_so: object, what: str) -> None:
    """End the program unless it is so."""
    if not is_so:
        sys.exit(f"it is not so that {what}")


def reaches(one, other, address) -> bool:
    """Does a TCP connection from one namespace to another come about?"""
    with socket.socket(fileno=other.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.bind(("", 8080))
        listener.listen()
        with socket.socket(fileno=one.socket(socket.AF_INET, socket.SOCK_STREAM)) as client:
            client.settimeout(60)
            client.connect((address, 8080))
    return True


def main() -> None:
    private_node()
    from cni import _nftables
    from cni.invoke import launcher
    from cni.kernel.netns import NetNS

    expect(_nftables.ffi, "libnftables has its functions")
    expect(os.path.realpath(launcher.PACKAGES).startswith(os.path.realpath(sys.prefix)), "it is the installed package")
    scripts = sysconfig.get_path("scripts")
    os.environ.update(CNI_PATH="/opt/cni/bin", NETCONFPATH="/opt/cni/net.d")
    run(f"{scripts}/cni", "install", "--dir", "/opt/cni/bin")
    os.makedirs("/opt/cni/net.d")
    with open("/opt/cni/net.d/10-smoke.conflist", "w") as file:
        json.dump(CONFIG, file)
    with open("/proc/sys/net/ipv6/conf/default/accept_dad", "w") as file:
        file.write("0")
    with NetNS.create("one") as one, NetNS.create("two") as two:
        addresses = []
        for netns in (one, two):
            result = json.loads(run(f"{scripts}/cnitool", "add", "smoke", netns.path))
            addresses.append(result["ips"][0]["address"].partition("/")[0])
            run(f"{scripts}/cnitool", "check", "smoke", netns.path)
        expect(reaches(one, two, addresses[1]), "one reaches the other")
        for netns in (one, two):
            run(f"{scripts}/cnitool", "del", "smoke", netns.path)
    left = [name for name in os.listdir("/var/lib/cni/networks/smoke") if name[0].isdigit()]
    expect(not left, f"nothing is reserved any more ({left})")
    print(f"Python {sys.version.split()[0]}: attached, checked, connected, detached")


if __name__ == "__main__":
    main()
