"""confined.py UNIT COMMAND...: execute the command with what a service unit of systemd's takes away from it.

What systemd does between fork and exec, for the few settings that ours use, as there is no systemd in tests.
"""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38  # linux/prctl.h
# linux/capability.h, in order
CAPABILITIES = [
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
]  # fmt: skip
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10, "AF_NETLINK": 16, "AF_PACKET": 17}
NAMESPACES = {"user": 0x10000000, "pid": 0x20000000, "ipc": 0x8000000, "uts": 0x4000000, "cgroup": 0x2000000}
ALLOW, ERRNO = 0x7FFF0000, 0x50000  # seccomp.h
EQUAL, MASKED = 4, 7

libc = ctypes.CDLL(None, use_errno=True)
seccomp = ctypes.CDLL("libseccomp.so.2")
seccomp.seccomp_init.restype = ctypes.c_void_p


class Compared(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


def settings(path: str) -> dict[str, str]:
    """A list that is set twice is set to both."""
    found: dict[str, str] = {}
    with open(path) as file:
        lines = [line.strip() for line in file if "=" in line and not line.startswith("#")]
    for name, _, value in (line.partition("=") for line in lines):
        found[name] = f"{found[name]} {value}" if name in found else value
    return found


def system_calls(group: str) -> set[str]:
    listed = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    names = {line.strip() for line in listed.stdout.splitlines()[1:] if line.strip() and "#" not in line}
    nested = [system_calls(name) for name in names if name.startswith("@")]
    return set().union({name for name in names if not name.startswith("@")}, *nested)


def main(unit: str, command: list[str]) -> None:
    given = settings(unit)
    kept = {name.removeprefix("CAP_").lower() for name in given["CapabilityBoundingSet"].split()}
    unknown = kept - set(CAPABILITIES)
    assert not unknown, unknown
    for number, name in enumerate(CAPABILITIES):
        if name not in kept and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0):
            assert ctypes.get_errno() == errno.EINVAL, name  # an older kernel's
    assert given["NoNewPrivileges"] == "yes"
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    refuse(given)
    os.execvp(command[0], command)


def refuse(given: dict[str, str]) -> None:
    context = ctypes.c_void_p(seccomp.seccomp_init(ctypes.c_uint32(ALLOW)))

    def rule(error: int, name: str, *compared: Compared) -> None:
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        array = (Compared * len(compared))(*compared)
        if number >= 0:  # otherwise this processor does not have it
            action = ctypes.c_uint32(ERRNO | error)
            assert seccomp.seccomp_rule_add_array(context, action, number, len(compared), array) == 0, name

    assert given["SystemCallFilter"].startswith("~")
    for group in given["SystemCallFilter"][1:].split():
        for name in system_calls(group):
            rule(errno.EPERM, name)
    allowed = {FAMILIES[name] for name in given["RestrictAddressFamilies"].split()}
    for family in set(range(48)) - allowed:
        rule(errno.EAFNOSUPPORT, "socket", Compared(0, EQUAL, family, 0))
    assert given["RestrictNamespaces"].startswith("~")
    for name in given["RestrictNamespaces"][1:].split():
        flag = NAMESPACES[name]
        rule(errno.EPERM, "unshare", Compared(0, MASKED, flag, flag))
        rule(errno.EPERM, "setns", Compared(1, MASKED, flag, flag))
    rule(errno.EPERM, "setns", Compared(1, EQUAL, 0, 0))
    assert seccomp.seccomp_load(context) == 0


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
