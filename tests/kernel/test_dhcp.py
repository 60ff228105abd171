"""dhcp against a real server: leases got, kept, lost and given back."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cni.invoke import launcher
from cni_plugins.ipam.dhcp import message
from cni_plugins.ipam.dhcp.message import ACK, DISCOVER, NAK, OFFER, RELEASE, REQUEST, Message
from tests.waiting import LIMIT, until

if TYPE_CHECKING:
    from tests.conftest import Node
    from tests.lan import Lan

SERVER = "10.80.0.1"
QUICK = ("-timeout", "300ms", "-resendmax", "2s")


def times(renewal: int, rebinding: int = 100) -> list[str]:
    """Options of dnsmasq's, which takes no times below three seconds; T1 is then just before T2."""
    return [f"--dhcp-option=option:T1,{renewal}s", f"--dhcp-option=option:T2,{rebinding}s"]


def address(result: dict[str, Any]) -> str:
    (ip,) = result["ips"]
    return str(ip["address"])


def addresses(container: Node, ifname: str = "eth0") -> list[str]:
    (link,) = container.ip("address", "show", ifname)
    return [f"{ip['local']}/{ip['prefixlen']}" for ip in link["addr_info"] if ip["family"] == "inet"]


def descriptors(pid: int, kind: str) -> int:
    """How many descriptors of a kind a process has."""
    return sum(os.readlink(link).startswith(kind) for link in Path(f"/proc/{pid}/fd").iterdir())


class TestAttachment:
    @pytest.mark.parametrize("version", ["0.1.0", "0.3.0", "0.4.0", "1.0.0", "1.1.0"])
    def test_whole(self, lan: Lan, version: str) -> None:
        lan.serve()
        lan.start_daemon()
        container = lan.node.container()
        with lan.capture() as capture:
            result = lan.add(container, cniVersion=version)
            if version == "0.1.0":
                ip, gateway = result["ip4"]["ip"], result["ip4"]["gateway"]
            else:
                ip, gateway = address(result), result["ips"][0]["gateway"]
                assert result["routes"] == [{"dst": "0.0.0.0/0", "gw": SERVER}]
            assert gateway == SERVER
            assert addresses(container) == [ip]
            assert container.ip("route", "show", "default")[0]["gateway"] == SERVER
            container.run(["ping", "-c", "1", "-W", str(LIMIT), SERVER])
            plain = ip.removesuffix("/24")
            assert lan.given == {plain: f"{container.name}/lan/eth0"}
            if version >= "0.4.0":
                assert lan.call("CHECK", container, cniVersion=version, prevResult=result) == (0, None)
            for _ in range(2):
                lan.delete(container, cniVersion=version)
            lan.was_given_back(plain)
            assert [len(capture.of(kind)) for kind in (REQUEST, ACK, RELEASE)] == [1, 1, 1]

    def test_two_interfaces_of_a_container(self, lan: Lan) -> None:
        lan.serve()
        lan.start_daemon()
        container = lan.node.container()
        first, second = (address(lan.add(container, name)).removesuffix("/24") for name in ("eth0", "net1"))
        assert set(lan.given) == {first, second}
        lan.delete(container, "eth0")
        lan.was_given_back(first)
        assert set(lan.given) == {second}
        lan.delete(container, "net1")
        lan.was_given_back(second)

    def test_the_interface_went_before(self, lan: Lan) -> None:
        """As with interface plugins that delete it first, Go's: the release takes the node's way to the server."""
        lan.serve()
        lan.start_daemon()
        container = lan.node.container()
        lan.interface(container)
        ip = address(lan.add(container, type="dhcp")).removesuffix("/24")
        container.run(["ip", "link", "delete", "eth0"])
        lan.delete(container, type="dhcp")
        lan.was_given_back(ip)

    def test_a_server_that_the_node_does_not_reach(self, lan: Lan) -> None:
        """Our interface plugins give the lease back before they delete the interface."""
        server = lan.node.container()
        link = ["link", "add", "uplink", "type", "veth", "peer", "name", "br0", "netns"]
        lan.node.run(["ip", *link, server.name])
        lan.node.run(["ip", "link", "set", "uplink", "master", "br0", "up"])
        lan.node.run(["ip", "address", "flush", "dev", "br0"])
        server.run(["ip", "address", "add", f"{SERVER}/24", "dev", "br0"])
        server.run(["ip", "link", "set", "br0", "up"])
        lan.serve(node=server)
        lan.start_daemon()
        container = lan.node.container()
        ip = address(lan.add(container)).removesuffix("/24")
        lan.delete(container)
        lan.was_given_back(ip)

    def test_an_exhausted_pool(self, lan: Lan) -> None:
        lan.serve(range="10.80.0.50,10.80.0.50")
        lan.start_daemon("-timeout", "500ms", "-resendmax", "8s", "--resendtimeout", "2s")
        one, other = lan.node.container(), lan.node.container()

        def added(container: Node) -> dict[str, Any] | None:
            status, result = lan.call("ADD", container)
            return None if status else result

        until(lambda: added(one), "an answer within two seconds")
        assert lan.call("ADD", other) == (1, {"code": 999, "msg": "error calling DHCP.Allocate: no more tries"})
        assert [link["ifname"] for link in other.ip("link")] == ["lo"]
        lan.delete(one)
        assert address(until(lambda: added(other), "an answer within two seconds")) == "10.80.0.50/24"

    def test_what_can_not_be(self, lan: Lan) -> None:
        lan.start_daemon()
        container = lan.node.container()
        for ipam, problem in (
            ({}, 'error looking up "eth0": Link not found'),
            ({"request": [{"option": "junk"}]}, 'Can not parse option "junk": '),
            ({"provide": [{"option": "12", "value": "x" * 256}]}, 'value too long for option "12": '),
        ):
            status, error = lan.call("ADD", container, type="dhcp", ipam=ipam)
            assert status == 1
            assert error["msg"].startswith(f"error calling DHCP.Allocate: {problem}")

    def test_status_and_gc(self, lan: Lan) -> None:
        assert lan.call("STATUS", lan.node, cniVersion="1.1.0")[1]["code"] == 50
        lan.serve()
        lan.start_daemon()
        assert lan.call("STATUS", lan.node, cniVersion="1.1.0") == (0, None)
        containers = [lan.node.container() for _ in range(2)]
        kept, lost = (address(lan.add(container)).removesuffix("/24") for container in containers)
        valid = [{"containerID": containers[0].name, "ifname": "eth0"}]
        more: dict[str, Any] = {"cni.dev/valid-attachments": valid}
        assert lan.call("GC", lan.node, cniVersion="1.1.0", **more) == (0, None)
        lan.was_given_back(lost)
        assert set(lan.given) == {kept}

    def test_lean(self, lan: Lan, plugins: Path, foreign: Callable[[set[str]], set[str]]) -> None:
        """A call imports nothing dear."""
        lan.serve()
        lan.start_daemon()
        container = lan.node.container()
        lan.interface(container)
        program = """
import sys
sys.path.insert(0, sys.argv[1])
from cni_plugins.ipam.dhcp import plugin
environ = {"CNI_COMMAND": sys.argv[2], "CNI_NETNS": sys.argv[3]}
environ |= {"CNI_CONTAINERID": "c", "CNI_IFNAME": "eth0", "CNI_PATH": "/"}
outcome = plugin.serve(environ, sys.argv[4].encode, print)
print(*sorted(sys.modules))
sys.exit(outcome.stdout if outcome.error else 0)
"""
        ipam = {"type": "dhcp", "daemonSocketPath": str(lan.socket)}
        config = json.dumps({"cniVersion": "1.0.0", "name": "n", "ipam": ipam})
        for verb in ("ADD", "CHECK", "DEL"):
            command = [sys.executable, "-I", "-S", "-E", "-c", program, launcher.PACKAGES, verb, container.path, config]
            assert foreign(set(lan.node.run(command).stdout.split())) == set(), verb


class TestOptions:
    def test_sent_and_asked_for(self, lan: Lan) -> None:
        """As the server and the wire see them."""
        lan.serve(
            "--dhcp-vendorclass=set:v,vendor-x", "--dhcp-userclass=set:u,users", "--dhcp-option=tag:v,tag:u,26,1380"
        )
        lan.start_daemon()
        container = lan.node.container()
        provide = [
            {"option": "host-name", "fromArg": "K8S_POD_NAME"},
            {"option": "vendor-class-identifier", "value": "vendor-x"},
            {"option": "77", "value": "users"},
            {"option": "dhcp-client-identifier", "value": "\u0000me"},
        ]
        request = [{"option": "26", "skipDefault": True}, {"option": "subnet-mask"}]
        with lan.capture() as capture:
            result = lan.add(
                container,
                args="IgnoreUnknown=1;K8S_POD_NAME=web-1",
                ipam={"provide": provide, "request": request, "priority": 70},
            )
            for sent in (capture.of(DISCOVER)[0], capture.of(REQUEST)[0]):
                assert sent.options[message.HOST_NAME] == b"web-1"
                assert sent.options[message.VENDOR_CLASS] == b"vendor-x"
                assert sent.options[message.USER_CLASS] == b"users"
                assert sent.options[message.CLIENT_ID] == b"\0me"
                assert sent.options[message.PARAMETERS] == bytes((26, 1))
                assert sent.options[message.MAXIMUM_SIZE] == b"\5\xdc"
                assert not sent.broadcast
        assert list(lan.given.values()) == ["me"]
        assert "tags: u, v, br0" in lan.log or "tags: v, u, br0" in lan.log
        assert container.ip("link", "show", "eth0")[0]["mtu"] == 1380
        assert "gateway" not in result["ips"][0]
        assert "routes" not in result

    CLASSLESS = "--dhcp-option=121,10.99.0.0/16,10.80.0.7,10.98.0.0/16,0.0.0.0"
    STATIC = "--dhcp-option=33,10.0.0.0,10.80.0.8,192.168.1.0,10.80.0.9"

    @pytest.mark.parametrize(
        ("served", "routes"),
        [
            ([], ["default 10.80.0.1"]),
            ([STATIC], ["10.0.0.0/8 10.80.0.8", "192.168.1.0/24 10.80.0.9", "default 10.80.0.1"]),
            ([CLASSLESS, STATIC], ["10.98.0.0/16 link", "10.99.0.0/16 10.80.0.7"]),
        ],
    )
    def test_routes(self, lan: Lan, served: list[str], routes: list[str]) -> None:
        lan.serve(*served)
        lan.start_daemon()
        container = lan.node.container()
        request = [{"option": "121"}, {"option": "33"}]
        result = lan.add(container, ipam={"request": request, "priority": 70})
        assert result["ips"][0]["gateway"] == SERVER
        found = [route for route in container.ip("route") if route["dst"] != "10.80.0.0/24"]
        assert all(route["metric"] == 70 for route in found)
        assert sorted(f"{route['dst']} {route.get('gateway', 'link')}" for route in found) == routes

    def test_broadcast(self, lan: Lan) -> None:
        lan.serve()
        lan.start_daemon("-broadcast")
        with lan.capture() as capture:
            lan.add(lan.node.container())
            assert all(found.broadcast for _, found in capture.seen)


class TestKeeping:
    def test_renewed_and_a_server_that_comes_back(self, lan: Lan) -> None:
        lan.serve(*times(3))
        lan.start_daemon(*QUICK)
        with lan.capture() as capture:
            ip = address(lan.add(lan.node.container())).removesuffix("/24")
            begin = capture.seen[-1][0]
            until(lambda: len(capture.of(ACK)) >= 2, "a renewal")
            renewal = capture.of(REQUEST)[1]
            assert str(renewal.client) == ip
            assert next(at for at, found in capture.seen if found is renewal) - begin > 2.8
            lan.stop_serving()
            asked, seen = len(capture.of(REQUEST)), len(capture.seen)
            until(lambda: len(capture.of(REQUEST)) >= asked + 4, "requests in vain")
            assert capture.of(ACK, since=seen) == []
            lan.serve(*times(3))
            until(lambda: capture.of(ACK, since=seen), "another ACK")
            assert {kind for _, found in capture.seen[seen:] for kind in [found.kind]} == {REQUEST, ACK}
        assert "lease renewed" in lan.daemon_log
        assert set(lan.given) == {ip}

    def test_nak(self, lan: Lan) -> None:
        """A server that forgot, and has other addresses now: none of them is taken; then all is as before."""
        lan.serve(*times(3))
        lan.start_daemon(*QUICK)
        container = lan.node.container()
        with lan.capture() as capture:
            ip = address(lan.add(container))
            lan.serve(*times(3), range="10.80.0.100,10.80.0.110", forget=True)
            until(lambda: capture.of(NAK), "a NAK")
            offers = until(
                lambda: [offer for offer in capture.of(OFFER) if str(offer.yours) != ip[:-3]], "another offer"
            )
            assert str(offers[0].yours).startswith("10.80.0.1")
            time.sleep(0.5)
            assert lan.given == {}
            assert addresses(container) == [ip]
            seen = len(capture.seen)
            lan.serve(*times(3))
            until(lambda: capture.of(ACK, since=seen), "another ACK")
        assert lan.given == {ip[:-3]: f"{container.name}/lan/eth0"}
        assert f"but the interface has {ip[:-3]}" in lan.daemon_log
        lan.delete(container)
        lan.was_given_back(ip[:-3])

    def test_rebound(self, lan: Lan) -> None:
        """Where T2 has come, any server is asked, from the beginning, for the same address."""
        lan.serve(*times(3, 3))
        lan.start_daemon(*QUICK)
        container = lan.node.container()
        with lan.capture() as capture:
            ip = address(lan.add(container))
            lan.stop_serving()
            seen = len(capture.seen)
            until(lambda: capture.of(DISCOVER, since=seen), "another DISCOVER")
            assert capture.of(DISCOVER, since=seen)[0].options[message.REQUESTED_ADDRESS] == socket.inet_aton(ip[:-3])
            lan.serve(*times(20), forget=True)
            until(lambda: capture.of(ACK, since=seen), "another ACK")
        until(lambda: "lease rebound" in lan.daemon_log, "the lease to be rebound")
        assert lan.given == {ip[:-3]: f"{container.name}/lan/eth0"}

    def test_expired(self, lan: Lan) -> None:
        """Without a server the interface goes down in the end. A CHECK gets a lease anew; nothing waits for ever."""
        lan.start_daemon(*QUICK)
        container = lan.node.container()
        with lan.capture() as capture:
            capture.on_message = lambda found: capture.send(reply(found, lease=2)) if not found.is_reply else None
            lan.add(container)
            assert container.ip("link", "show", "eth0")[0]["operstate"] == "UP"
            until(lambda: len(capture.of(REQUEST)) > 1, "a renewal")
            capture.on_message = lambda found: None
            until(lambda: container.ip("link", "show", "eth0")[0]["operstate"] == "DOWN", "the interface to go down")
            assert "lease expired, bringing interface DOWN" in lan.daemon_log
            capture.on_message = lambda found: capture.send(reply(found, lease=60)) if not found.is_reply else None
            assert lan.call("CHECK", container, type="dhcp") == (0, None)
        assert container.ip("link", "show", "eth0")[0]["operstate"] == "UP"

    def test_stopped_while_a_lease_is_being_got(self, lan: Lan) -> None:
        """The call is answered first; the next daemon goes on with the lease."""
        container = lan.node.container()
        lan.interface(container)
        daemon = lan.start_daemon(*QUICK)
        with lan.capture() as capture, ThreadPoolExecutor(1) as thread:
            adding = thread.submit(lan.add, container, type="dhcp")
            until(lambda: capture.of(DISCOVER), "a DISCOVER")
            daemon.send_signal(signal.SIGTERM)
            lan.serve()
            ip = address(adding.result())
        assert daemon.wait(LIMIT) == 0
        lan.start_daemon(*QUICK)
        until(lambda: "resumed" in lan.daemon_log, "the lease to be resumed")
        lan.delete(container, type="dhcp")
        lan.was_given_back(ip.partition("/")[0])

    @pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
    def test_restart(self, lan: Lan, by: int) -> None:
        lan.serve(*times(3))
        lan.start_daemon(*QUICK)
        container, other, gone = (lan.node.container() for _ in range(3))
        ip = address(lan.add(container))
        for one in (other, gone):
            lan.interface(one)
            lan.add(one, type="dhcp")
        folder = lan.tmp / "dhcp.leases"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in folder.glob("*.json")} == {0o600}
        assert len(list(folder.glob("*.json"))) == 3
        with lan.capture() as capture:
            lan.stop_daemon(by)
            seen = len(capture.seen)
            assert lan.socket.exists() == (by == signal.SIGKILL)
            gone.run(["ip", "link", "delete", "eth0"])
            lan.start_daemon(*QUICK)
            until(lambda: "the lease is dropped: error looking up" in lan.daemon_log, "a lease to be dropped")
            until(lambda: lan.daemon_log.count("resumed") == 2, "two leases to be resumed")
            assert len(list(folder.glob("*.json"))) == 2
            assert lan.call(
                "CHECK", container, prevResult={"cniVersion": "1.0.0", "ips": [{"address": ip}]}, type="dhcp"
            ) == (0, None)
            renewed = until(lambda: capture.of(ACK, seen) and capture.of(REQUEST, seen), "a renewal")
            assert {str(request.client) for request in renewed} < set(lan.given)
            assert {found.kind for _, found in capture.seen[seen:]} == {REQUEST, ACK}
            lan.delete(container)
            lan.was_given_back(ip[:-3])
            assert len(list(folder.glob("*.json"))) == 1

    def test_a_namespace_is_not_kept_alive(self, lan: Lan) -> None:
        lan.serve()
        daemon = lan.start_daemon()
        for _ in range(3):
            lan.add(lan.node.container())
        # No namespace, and of sockets the one to listen on and the loop's own two.
        until(
            lambda: descriptors(daemon.pid, "net:") == 0 and descriptors(daemon.pid, "socket:") == 3,
            "the descriptors to be closed",
        )
        with open(f"/proc/{daemon.pid}/status") as status:
            threads = next(int(line.split()[1]) for line in status if line.startswith("Threads:"))
        assert threads <= 9  # the loop's, and those that close sockets


class TestRubbish:
    def test_malformed_offers(self, lan: Lan) -> None:
        """Whatever else comes as answer, the server's own one is found among it."""
        lan.serve()
        lan.start_daemon()
        container = lan.node.container()
        lan.interface(container)
        mac = bytes.fromhex(container.ip("link", "show", "eth0")[0]["address"].replace(":", ""))
        chance = random.Random(5)
        with lan.capture() as capture:

            def answer(found: Message) -> None:
                if found.kind == DISCOVER:
                    for frame in rubbish(found, mac, chance):
                        capture.send(frame)

            capture.on_message = answer
            for _ in range(3):
                result = lan.add(container, type="dhcp")
                assert address(result).startswith("10.80.0.")
                assert address(result).removesuffix("/24") in lan.given
                lan.delete(container, type="dhcp")
        assert "Traceback" not in lan.daemon_log


def rubbish(discover: Message, mac: bytes, chance: random.Random) -> list[bytes]:
    """Offers that are nearly good: their packets cut off, or with bytes changed."""
    options = {
        message.MESSAGE_TYPE: bytes((OFFER,)),
        message.SERVER: bytes((10, 80, 0, 66)),
        message.SUBNET_MASK: b"\xff\xff\xff\0",
    }
    options |= {message.OVERLOAD: b"\3", message.CLASSLESS_ROUTES: bytes(40)}
    offer = Message(discover.xid, mac, options, yours=message.IP(bytes((10, 80, 0, 200))), is_reply=True)
    whole = bytearray(message.packet(offer.encode(), message.IP(bytes((10, 80, 0, 66))), message.BROADCAST))
    whole[20:24] = b"\0\x43\0\x44"
    frames = []
    for _ in range(100):
        spoilt = bytearray(whole)
        # Where the packet says what it is, or where an option says how long it is.
        spoilt[chance.choice([0, 2, 6, 20 + 4, 28, 30, 28 + 236, 28 + 240 + 3 + 1])] ^= 0xFF
        for _ in range(5):
            spoilt[chance.randrange(28 + 240, len(spoilt))] = chance.randrange(256)
        frames.append(b"\xff" * 6 + bytes(6) + b"\x08\0" + bytes(spoilt)[: chance.randrange(20, len(spoilt))])
    return frames


def reply(found: Message, lease: int) -> bytes:
    """The frame by which a server that is no dnsmasq answers."""
    options = {
        message.MESSAGE_TYPE: bytes((OFFER if found.kind == DISCOVER else ACK,)),
        message.SERVER: socket.inet_aton("10.80.0.66"),
        message.SUBNET_MASK: b"\xff\xff\xff\0",
        message.LEASE_TIME: lease.to_bytes(4, "big"),
    }
    answer = Message(found.xid, found.hwaddr, options, yours=message.IP(bytes((10, 80, 0, 77))), is_reply=True)
    packet = bytearray(message.packet(answer.encode(), message.IP(bytes((10, 80, 0, 66))), message.BROADCAST))
    packet[20:24] = b"\0\x43\0\x44"
    return b"\xff" * 6 + bytes(6) + b"\x08\0" + bytes(packet)


class TestDaemon:
    def test_files(self, lan: Lan) -> None:
        lan.socket = lan.tmp / "made" / "by" / "daemon.sock"
        pidfile = lan.tmp / "pid"
        daemon = lan.start_daemon("-pidfile", str(pidfile))
        assert pidfile.read_text() == str(daemon.pid)
        assert pidfile.stat().st_mode & 0o777 == 0o644
        assert lan.socket.stat().st_mode & 0o777 == 0o600
        assert lan.socket.parent.stat().st_mode & 0o777 == 0o700
        assert lan.stop_daemon() == 0
        assert not pidfile.exists()
        assert not lan.socket.exists()

    def test_one_after_another(self, lan: Lan, plugins: Path) -> None:
        """A socket that was left is replaced; one at work is not."""
        lan.start_daemon()
        lan.stop_daemon(signal.SIGKILL)
        lan.start_daemon()
        command = [str(plugins / "dhcp"), "daemon", "-socketpath", str(lan.socket)]
        second = lan.node.run(command, check=False)
        assert second.returncode == 1
        assert second.stderr == f"another daemon keeps its leases in {lan.tmp / 'dhcp.leases'}\n"
        with socket.socket(socket.AF_UNIX) as foreign:
            path = lan.tmp / "foreign.sock"
            foreign.bind(str(path))
            foreign.listen()
            command[3] = str(path)
            refused = lan.node.run(command, check=False)
        assert (refused.returncode, refused.stderr) == (
            1,
            f"Error getting listener: listen unix {path}: address already in use\n",
        )

    @pytest.mark.parametrize(
        ("flags", "status", "said"),
        [
            ("-pidfile pid", 1, 'Error writing pidfile "pid": path not absolute\n'),
            ("-nope", 2, "flag provided but not defined: -nope\nUsage of daemon:\n"),
            ("-timeout 5", 2, 'invalid value "5" for flag -timeout: parse error\nUsage of daemon:\n'),
            ("-help", 0, "Usage of daemon:\n  -broadcast\n"),
        ],
    )
    def test_misuse(self, plugins: Path, flags: str, status: int, said: str) -> None:
        done = subprocess.run(
            [plugins / "dhcp", "daemon", *flags.split()], capture_output=True, text=True, timeout=LIMIT
        )
        assert (done.returncode, done.stderr[: len(said)]) == (status, said)

    def test_hostprefix(self, lan: Lan) -> None:
        lan.serve()
        root = lan.tmp / "host"
        (root / "run").mkdir(parents=True)
        (root / "run" / "netns").symlink_to("/run/netns")
        socket_path, lan.socket = lan.socket, root / "cni" / "dhcp.sock"
        lan.start_daemon("-hostprefix", str(root), "-socketpath", "/cni/dhcp.sock")
        container = lan.node.container()
        lan.add(container)
        assert str(root) in next((root / "cni" / "dhcp.leases").glob("*.json")).read_text()
        assert not socket_path.exists()
        lan.delete(container)

    @pytest.mark.parametrize("number", [1, 2])
    def test_systemd(self, lan: Lan, plugins: Path, number: int) -> None:
        """A socket that is handed over is served, and left in its place."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(lan.socket))
            listener.listen()
            program = (
                "import os, sys\n"
                "fd, number, *command = sys.argv[1:]\n"
                "for to in range(3, 3 + int(number)): os.dup2(int(fd), to, inheritable=True)\n"
                "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': number}\n"
                "os.execv(command[0], command)\n"
            )
            fd = os.dup(listener.fileno()) if listener.fileno() < 5 else listener.fileno()
            command = [sys.executable, "-c", program, str(fd), str(number), str(plugins / "dhcp"), "daemon"]
            command += ["-socketpath", str(lan.socket)]
            with subprocess.Popen(command, pass_fds=[fd], stderr=subprocess.PIPE, text=True) as daemon:
                assert daemon.stderr
                if number == 2:
                    assert daemon.wait(LIMIT) == 1
                    assert daemon.stderr.read() == "Too many (2) FDs passed through socket activation\n"
                    return
                assert lan.call("STATUS", lan.node, cniVersion="1.1.0") == (0, None)
                daemon.terminate()
                assert daemon.wait(LIMIT) == 0
            assert lan.socket.exists()

    def test_strangers(self, lan: Lan) -> None:
        """Other users than root get nothing, even where they reach the socket."""
        lan.start_daemon()
        lan.tmp.chmod(0o711)
        lan.socket.chmod(0o666)
        program = (
            "import os, socket, sys\n"
            "s = socket.socket(socket.AF_UNIX)\n"
            "os.chdir(sys.argv[1])\n"
            "os.setuid(65534)\n"
            "s.connect('dhcp.sock')\n"
            "try: s.sendall(b'CONNECT /_goRPC_ HTTP/1.0\\n\\n'); sys.exit(len(s.recv(99)))\n"
            "except OSError: pass\n"
        )
        assert lan.node.run([sys.executable, "-c", program, str(lan.tmp)], check=False).returncode == 0
        assert lan.call("STATUS", lan.node, cniVersion="1.1.0") == (0, None)


def test_the_capture_captures(lan: Lan) -> None:
    lan.serve()
    lan.start_daemon()
    with lan.capture() as capture:
        lan.add(lan.node.container())
        assert [found.kind for _, found in capture.seen[-4:]] == [DISCOVER, OFFER, REQUEST, ACK]
