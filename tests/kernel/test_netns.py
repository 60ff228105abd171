"""Network namespaces: opened, made and used by descriptor, while the calling thread never moves."""

from __future__ import annotations

import errno
import fcntl
import gc
import os
import secrets
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cni import _core
from cni.kernel import sysctl
from cni.kernel.netns import Home, NetNS, NetNSNotFound, NotANetNS
from tests.waiting import LIMIT


def where() -> str:
    """The calling thread's namespace."""
    return os.readlink("/proc/thread-self/ns/net")


def identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def devices(fd: int) -> list[str]:
    """The links that /proc/thread-self/net/dev names; `fd` is closed."""
    with open(fd) as file:
        return [line.split(":")[0].strip() for line in file if ":" in line]


def python(code: str, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code that can import what this process can, with a limit of time."""
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **(env or {})}
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=LIMIT)


@pytest.fixture(autouse=True)
def still() -> Iterator[None]:
    """No test may move its thread."""
    before = where()
    yield
    assert where() == before


@pytest.fixture
def netns() -> Iterator[NetNS]:
    with NetNS.create() as made:
        made.netlink().batch().link_create("bridge", "inside0").commit()
        yield made


class TestOpen:
    def test_by_path(self, netns: NetNS) -> None:
        with NetNS.open(f"/proc/self/fd/{netns.fd}") as again:
            assert again == netns
            assert hash(again) == hash(netns)
            assert again.fd != netns.fd

    def test_by_pid(self, netns: NetNS) -> None:
        child = netns.run(subprocess.Popen, ["sleep", "60"])
        try:
            with NetNS.of_pid(child.pid) as its:
                assert its == netns
        finally:
            child.kill()
            child.wait()

    def test_by_descriptor_which_stays_the_callers(self, netns: NetNS) -> None:
        fd = os.open(f"/proc/self/fd/{netns.fd}", os.O_RDONLY)
        with NetNS.of_fd(fd) as again:
            os.close(fd)
            assert again == netns
            assert identity(again.path) == netns.identity, "the path is good after the caller closed its descriptor"

    def test_path_of_a_descriptor_is_good_for_child_processes(self, netns: NetNS) -> None:
        with NetNS.of_fd(netns.fd) as again:
            seen = subprocess.run(["stat", "-L", "-c", "%i", again.path], capture_output=True, text=True, check=True)
            assert int(seen.stdout) == netns.identity[1]

    def test_current_is_the_threads_own(self, netns: NetNS) -> None:
        with NetNS.current() as host, netns.run(NetNS.current) as inside:
            assert host.identity == identity("/proc/thread-self/ns/net")
            assert inside == netns
            assert inside != host

    def test_compares_with_namespaces_alone(self, netns: NetNS) -> None:
        assert netns != netns.identity

    @pytest.mark.parametrize("path", ["/run/netns/there-is-no-such", "", "/proc/4194305/ns/net"])
    def test_missing(self, path: str) -> None:
        with pytest.raises(NetNSNotFound, match=f'^failed to Statfs "{path}": no such file or directory$') as caught:
            NetNS.open(path)
        assert caught.value.errno == errno.ENOENT

    def test_other_reasons_are_neither(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(OSError, match="not a directory") as caught:
            NetNS.open(f"{tmp_path}/file/net")
        assert not isinstance(caught.value, (NetNSNotFound, NotANetNS))
        assert caught.value.errno == errno.ENOTDIR

    @pytest.mark.parametrize("kind", ["mnt", "uts", "ipc", "pid", "user", "cgroup"])
    def test_namespaces_of_other_kinds(self, kind: str) -> None:
        path = f"/proc/self/ns/{kind}"
        with pytest.raises(NotANetNS, match=f'^"{path}" is not a network namespace$'):
            NetNS.open(path)

    @pytest.mark.parametrize("path", ["/dev/null", "/dev/ptmx", "/", "/proc/self/status", "/proc/kmsg", "/sys/kernel"])
    def test_devices_folders_and_proc_files(self, path: str) -> None:
        with pytest.raises(NotANetNS):
            NetNS.open(path)

    def test_regular_file(self, tmp_path: Path) -> None:
        file = tmp_path / "net"
        file.write_text("no namespace")
        with pytest.raises(NotANetNS, match=r'^unknown FS magic on ".*/net": [0-9a-f]+$'):
            NetNS.open(str(file))

    def test_fifo_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "net")
        done = python(
            """
            import sys
            from cni.kernel.netns import NetNS, NotANetNS
            try:
                NetNS.open(sys.argv[1])
            except NotANetNS:
                print("no namespace")
            """,
            str(tmp_path / "net"),
        )
        assert done.stdout == "no namespace\n", done.stderr

    @pytest.mark.parametrize("kind", ["file", "user namespace", "closed"])
    def test_descriptor_of_something_else(self, kind: str, tmp_path: Path) -> None:
        fd = os.open("/proc/self/ns/user" if kind == "user namespace" else tmp_path, os.O_RDONLY)
        if kind == "closed":
            os.close(fd)
        try:
            with pytest.raises(NotANetNS, match=f"/proc/self/fd/{fd}"):
                NetNS.of_fd(fd)
        finally:
            if kind != "closed":
                os.close(fd)

    def test_name_with_a_nul_is_not_cut_there(self, netns: NetNS) -> None:
        path = f"/proc/self/fd/{netns.fd}"
        with pytest.raises(ValueError, match="NUL"):
            NetNS.open(path + "\0/elsewhere")

    def test_closed_one_is_never_taken_for_the_threads_own(self) -> None:
        netns = NetNS.create()
        netns.close()
        netns.close()
        for use in (
            netns.netlink,
            lambda: netns.socket(socket.AF_INET, socket.SOCK_DGRAM),
            lambda: netns.open_file("/proc/sys/net/ipv4/ip_forward"),
            lambda: netns.run(where),
            lambda: netns.identity,
        ):
            with pytest.raises(OSError, match=r"(?i)bad file descriptor"):
                use()

    def test_closed_one_is_no_place_to_make_a_link_in(self, netns: NetNS) -> None:
        closed = NetNS.create()
        closed.close()
        with netns.netlink() as node:
            for batch in (
                node.batch().veth("v0", "p0", netns=closed.fd),
                node.batch().link_create("bridge", "b0", netns=closed.fd),
                node.batch().link_set("inside0", netns=closed.fd),
            ):
                with pytest.raises(_core.NetlinkError):
                    batch.commit()
            assert {link.name for link in node.links()} == {"lo", "inside0"}


def mounts_at(path: str) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if line.split()[4] == path]


class TestCreate:
    def test_anonymous_one_lives_in_its_descriptor(self) -> None:
        with NetNS.create() as netns, NetNS.current() as host:
            assert netns != host
            assert netns.path == ""
            netns.remove()
            assert devices(netns.open_file("/proc/thread-self/net/dev")) == ["lo"]

    def test_below_run_netns_as_ip_sees_it(self) -> None:
        name = f"cnitest-{secrets.token_hex(4)}"
        with NetNS.create(name) as netns:
            try:
                assert netns.path == f"/run/netns/{name}"
                assert identity(netns.path) == netns.identity
                listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
                assert name in listed.stdout.split()
                look = ["ip", "netns", "exec", name, "readlink", "/proc/self/ns/net"]
                shown = subprocess.run(look, capture_output=True, text=True)
                assert shown.stdout == f"net:[{netns.identity[1]}]\n"
            finally:
                netns.remove()
        assert not os.path.lexists(netns.path)
        assert mounts_at(netns.path) == []
        netns.remove()

    def test_is_seen_in_other_mount_namespaces(self) -> None:
        _core.netns_share("/run/netns")
        name = f"cnitest-{secrets.token_hex(4)}"
        command = ["unshare", "--mount", "--propagation", "slave", "sh", "-c", "echo; exec sleep 60"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
            assert other.stdout
            other.stdout.readline()
            netns = NetNS.create(name)
            try:
                look = ["nsenter", f"--mount=/proc/{other.pid}/ns/mnt", "stat", "-f", "-c", "%T", netns.path]
                assert subprocess.run(look, capture_output=True, text=True).stdout == "nsfs\n"
                netns.remove()
                assert subprocess.run(look, capture_output=True).returncode != 0
            finally:
                netns.remove()
                netns.close()
                other.kill()

    def test_in_a_folder_of_the_callers(self, tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "namespaces"
        with NetNS.create("one", str(folder)) as netns, NetNS.open(f"{folder}/one") as again:
            assert again == netns
            assert len(mounts_at(f"{folder}/one")) == 1
            again.remove()
        assert list(folder.iterdir()) == []
        assert mounts_at(f"{folder}/one") == []

    def test_outlives_its_object(self, tmp_path: Path) -> None:
        with NetNS.create("one", str(tmp_path)) as netns:
            was = netns.identity
        with NetNS.open(str(tmp_path / "one")) as again:
            assert again.identity == was
            again.remove()

    def test_taken_name_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "one").write_text("precious")
        with pytest.raises(OSError, match="file exists") as caught:
            NetNS.create("one", str(tmp_path))
        assert caught.value.errno == errno.EEXIST
        assert (tmp_path / "one").read_text() == "precious"

    def test_link_is_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "one").symlink_to(tmp_path / "target")
        with pytest.raises(OSError, match="file exists"):
            NetNS.create("one", str(tmp_path))
        assert not (tmp_path / "target").exists()

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\0b"])
    def test_name_is_one_part_of_a_path(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="its name is not a single path component"):
            NetNS.create(name, str(tmp_path))

    def test_failure_leaves_nothing(self, tmp_path: Path) -> None:
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(0o711)
        folder = tmp_path / "theirs"
        folder.mkdir()
        os.chown(folder, 65534, 65534)
        done = python(
            """
            import os, sys
            from cni.kernel.netns import NetNS
            os.setresuid(65534, 65534, 65534)
            try:
                NetNS.create("one", sys.argv[1])
            except OSError as error:
                print(error)
            print(os.listdir(sys.argv[1]))
            """,
            str(folder),
        )
        assert done.stdout == "create a network namespace: operation not permitted\n[]\n", done.stderr

    def test_many_at_once(self, tmp_path: Path) -> None:
        with ThreadPoolExecutor(16) as pool:
            made = list(pool.map(lambda n: NetNS.create(f"ns{n}", str(tmp_path)), range(48)))
            assert len({netns.identity for netns in made}) == 48
            list(pool.map(NetNS.remove, made))
        for netns in made:
            netns.close()
        assert list(tmp_path.iterdir()) == []


class TestInside:
    """Sockets and files that belong to the namespace, opened from outside."""

    def test_socket(self, netns: NetNS) -> None:
        with socket.socket(fileno=netns.socket(socket.AF_INET, socket.SOCK_DGRAM)) as inside:
            request = b"inside0".ljust(40, b"\0")
            fcntl.ioctl(inside, 0x8913, request)  # SIOCGIFFLAGS
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as outside,
            pytest.raises(OSError, match="No such device"),
        ):
            fcntl.ioctl(outside, 0x8913, request)

    def test_socket_of_a_listener(self, netns: NetNS) -> None:
        netns.netlink().batch().link_set("lo", up=True).commit()
        with (
            socket.socket(fileno=netns.socket(socket.AF_INET, socket.SOCK_STREAM)) as server,
            socket.socket(fileno=netns.socket(socket.AF_INET, socket.SOCK_STREAM)) as client,
        ):
            server.bind(("127.0.0.1", 0))
            server.listen()
            client.connect(server.getsockname())
            with socket.socket() as outside:
                assert outside.connect_ex(server.getsockname()) == errno.ECONNREFUSED

    def test_file(self, netns: NetNS) -> None:
        assert devices(netns.open_file("/proc/thread-self/net/dev")) == ["lo", "inside0"]
        fd = netns.open_file("/proc/sys/net/ipv4/conf/inside0/forwarding")
        os.close(fd)
        assert not os.path.exists("/proc/sys/net/ipv4/conf/inside0")

    def test_file_made_has_a_sound_mode(self, netns: NetNS, tmp_path: Path) -> None:
        os.close(netns.open_file(str(tmp_path / "new"), os.O_WRONLY | os.O_CREAT))
        assert (tmp_path / "new").stat().st_mode & 0o7777 == 0o600

    def test_errors_say_what_was_attempted(self, netns: NetNS) -> None:
        before = where()
        with pytest.raises(OSError, match=r'^open "/proc/sys/net/nothing": no such file or directory$'):
            netns.open_file("/proc/sys/net/nothing")
        assert where() == before
        with pytest.raises(OSError, match=r"^open a socket \(family 4095, type 1, protocol 0\): address family"):
            netns.socket(4095, 1)
        assert where() == before
        with (
            open("/dev/null") as null,
            pytest.raises(OSError, match=r"^enter the network namespace .*: invalid"),
        ):
            _core.netns_socket(null.fileno(), socket.AF_INET, socket.SOCK_STREAM)
        assert where() == before

    def test_from_a_thread_that_is_elsewhere(self, netns: NetNS) -> None:
        """The way back leads to the calling thread's own namespace, not to the main thread's."""

        def look(other: NetNS) -> tuple[str, list[str], str]:
            before = where()
            return before, devices(other.open_file("/proc/thread-self/net/dev")), where()

        with NetNS.create() as second:
            before, seen, after = second.run(look, netns)
            assert before == after == f"net:[{second.identity[1]}]"
            assert seen == ["lo", "inside0"]

    def test_descriptors_are_close_on_exec(self, netns: NetNS) -> None:
        with NetNS.current() as host, NetNS.of_fd(netns.fd) as copy, netns.netlink() as inside:
            opened = [
                netns.socket(socket.AF_INET, socket.SOCK_STREAM),
                netns.open_file("/proc/sys/net/ipv4/ip_forward"),
            ]
            for fd in (host.fd, netns.fd, copy.fd, inside.fileno(), *opened):
                assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
            for fd in opened:
                os.close(fd)


class TestHome:
    @pytest.fixture
    def home(self, netns: NetNS) -> Home:
        return netns.run(Home.current)

    def test_a_thread_keeps_its_socket(self, home: Home, netns: NetNS) -> None:
        with home.netlink() as one, home.netlink() as same:
            assert one is same
            assert [link.name for link in one.links()] == ["lo", "inside0"]
        descriptor = one.fileno()
        home.close()
        assert home.netlink().fileno() == descriptor
        assert home.netlink().link("lo").index == 1
        assert home == netns

    def test_every_thread_has_its_own_until_it_ends(self, home: Home) -> None:
        descriptors = len(os.listdir("/proc/self/fd"))
        barrier = threading.Barrier(8)

        def use() -> int:
            number = home.netlink().fileno()
            barrier.wait()
            assert home.netlink().link("lo").name == "lo"
            return number

        with ThreadPoolExecutor(8) as pool:
            seen = [job.result() for job in [pool.submit(use) for _ in range(8)]]
        assert len(set(seen)) == 8
        assert len(os.listdir("/proc/self/fd")) == descriptors

    def test_an_answer_that_nobody_read_is_nobody_elses(self, home: Home) -> None:
        node = home.netlink()
        batch = node.batch().link_get("lo")
        with socket.socket(fileno=os.dup(node.fileno())) as same:
            message = struct.pack("IHHII", 16 + 16, 18, 1, 7, 0) + struct.pack("BxHiII", 0, 0, 1, 0, 0)
            same.sendto(message, (0, 0))  # RTM_GETLINK, as if the thread had been interrupted
        assert batch.commit()[0].name == "lo"
        assert [link.name for link in node.links()] == ["lo", "inside0"]

    def test_news_come_by_a_socket_of_their_own(self, home: Home) -> None:
        with home.news(1) as news, home.netlink() as node:
            assert news is not node
            node.batch().link_create("bridge", "br0").commit()
            assert [link.name for link in news.wait(LIMIT)] == ["br0"]
            assert node.link("br0").name == "br0"

    def test_parameters_of_links(self, home: Home, netns: NetNS) -> None:
        home.netlink().batch().link_create("bridge", "br0").commit()
        assert home.link_parameters is not None
        assert os.readlink(f"/proc/self/fd/{home.link_parameters}") == "/proc/sys/net/ipv6/conf"
        for place, value in ((home, "0"), (netns, "1")):
            sysctl.try_write(place, {"net/ipv6/conf/br0/accept_ra": value, "net/ipv6/conf/none/accept_ra": value})
            assert sysctl.read(netns, "net/ipv6/conf/br0/accept_ra") == value


class TestRun:
    def test_result_arguments_and_place(self, netns: NetNS) -> None:
        def pinned(first: int, *, second: int) -> tuple[int, str]:
            return first + second, where()

        before = where()
        assert netns.run(pinned, 1, second=2) == (3, f"net:[{netns.identity[1]}]")
        assert where() == before
        assert os.readlink("/proc/self/ns/net") == before

    def test_exceptions_come_out(self, netns: NetNS) -> None:
        class OfMine(BaseException):
            pass

        def fail() -> None:
            raise OfMine("inside")

        with pytest.raises(OfMine, match="inside"):
            netns.run(fail)

    def test_exception_holds_nothing_that_only_garbage_collection_frees(self, netns: NetNS) -> None:
        closed = []

        class Resource:
            def __del__(self) -> None:
                closed.append(True)

        def fail() -> None:
            resource = Resource()
            raise LookupError(str(resource))

        gc.disable()
        try:
            with pytest.raises(LookupError) as caught:
                netns.run(fail)
            del caught
            assert closed == [True]
        finally:
            gc.enable()

    def test_child_processes_are_inside(self, netns: NetNS) -> None:
        command = ["readlink", "/proc/self/ns/net"]
        done = netns.run(subprocess.run, command, capture_output=True, text=True)
        assert done.stdout.strip() == f"net:[{netns.identity[1]}]"
        assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == where()

    def test_not_a_namespace(self) -> None:
        with open("/dev/null") as null, pytest.raises(_core.KernelError, match="invalid argument"):
            NetNS(null.fileno(), "").run(where)

    def test_many_at_once_in_several_namespaces(self) -> None:
        spaces = [NetNS.create() for _ in range(6)]
        meeting = threading.Barrier(24)

        def inside() -> tuple[str, str, str]:
            first = where()
            meeting.wait(LIMIT)  # all threads are inside at the same time
            child = subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True).stdout.strip()
            return first, child, where()

        def one(number: int) -> bool:
            netns = spaces[number % 6]
            before = where()
            seen = netns.run(inside)
            return set(seen) == {f"net:[{netns.identity[1]}]"} and where() == before

        with ThreadPoolExecutor(24) as pool:
            assert all(pool.map(one, range(24)))
        for netns in spaces:
            netns.close()

    def test_threads_end(self, netns: NetNS) -> None:
        before = threading.active_count()
        for _ in range(20):
            netns.run(where)
        assert threading.active_count() == before


def test_no_descriptor_leaks(tmp_path: Path) -> None:
    """A thousand operations, those that fail among them."""
    file = tmp_path / "file"
    file.touch()
    with NetNS.create() as netns, file.open() as other:

        def fails(operation: str) -> None:
            with pytest.raises((OSError, ValueError)):
                match operation:
                    case "open":
                        NetNS.open(str(file))
                    case "kind":
                        NetNS.open("/proc/self/ns/user")
                    case "of_fd":
                        NetNS.of_fd(other.fileno())
                    case "create":
                        NetNS.create("file", str(tmp_path))
                    case "socket":
                        netns.socket(4095, 1)
                    case "file":
                        netns.open_file("/no/such/file")
                    case "netlink":
                        _core.Netlink(other.fileno())
                    case "run":
                        netns.run(os.stat, "/no/such/file")
                    case "batch":
                        with netns.netlink() as inside:
                            inside.link("nothing")

        def works() -> None:
            with NetNS.open(f"/proc/self/fd/{netns.fd}"), NetNS.of_fd(netns.fd), NetNS.current():
                os.close(netns.open_file("/proc/sys/net/ipv4/ip_forward"))
                os.close(netns.socket(socket.AF_INET, socket.SOCK_DGRAM))
                netns.netlink().links()  # closed with its last reference
                netns.run(where)

        failing = ("open", "kind", "of_fd", "create", "socket", "file", "netlink", "run", "batch")
        works()
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(100):
            works()
            for operation in failing:
                fails(operation)
        with NetNS.create("made", str(tmp_path)) as made:
            made.remove()
        assert sorted(os.listdir("/proc/self/fd")) == before


class TestOtherThreadsRun:
    """The interpreter is free while the kernel is waited for. Each in a process of its own: a failure is a hang."""

    COUNTER = """
        import os, sys, threading, time
        from cni import _core
        from cni.kernel.netns import NetNS

        ticks, stop = 0, False
        def count():
            global ticks
            while not stop:
                ticks += 1
                time.sleep(0)
        threading.Thread(target=count, daemon=True).start()
    """

    def test_while_a_file_is_opened(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        code = """
        netns = NetNS.create()
        def write():
            os.close(os.open(sys.argv[1], os.O_WRONLY))
        threading.Timer(0.2, write).start()
        before = os.readlink("/proc/thread-self/ns/net")
        os.close(netns.open_file(sys.argv[1]))
        print(os.readlink("/proc/thread-self/ns/net") == before)
        """
        assert python(self.COUNTER + code, str(fifo)).stdout == "True\n"

    def test_while_news_are_waited_for(self) -> None:
        code = """
        with NetNS.create() as netns, netns.netlink() as news:
            news.subscribe(1)
            def tell():
                before = ticks
                while ticks - before < 100:
                    time.sleep(0)
                with netns.netlink() as netlink:
                    netlink.batch().link_create("bridge", "br0").commit()
            threading.Timer(0.2, tell).start()
            print(news.wait(float("inf")) != [])
        """
        assert python(self.COUNTER + code).stdout == "True\n"

    def test_while_a_batch_is_worked_off(self) -> None:
        """Deleting a link takes the kernel 20 ms."""
        code = """
        with NetNS.create() as netns, netns.netlink() as inside:
            for number in range(5):
                inside.batch().veth(f"v{number}", f"p{number}").commit()
            before = ticks
            for number in range(5):
                inside.batch().link_delete(f"v{number}").commit()
            print(ticks - before > 20)
        """
        assert python(self.COUNTER + code).stdout == "True\n"


# The first call of each pair goes in, the second one, which shall lead back, is refused.
NO_WAY_BACK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>

int setns(int fd, int kind)
{
    static int (*real)(int, int), calls;

    if (!real)
        real = (int (*)(int, int))dlsym(RTLD_NEXT, "setns");
    if (++calls % 2)
        return real(fd, kind);
    errno = EPERM;
    return -1;
}
"""


@pytest.fixture(scope="module")
def no_way_back(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library to preload."""
    folder = tmp_path_factory.mktemp("preload")
    (folder / "setns.c").write_text(NO_WAY_BACK)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", "setns.so", "setns.c", "-ldl"], cwd=folder, check=True)
    return str(folder / "setns.so")


@pytest.mark.parametrize(
    "call",
    [
        "netns.socket(2, 1)",
        "netns.socket(4095, 1)",
        "netns.open_file('/proc/sys/net/ipv4/ip_forward')",
        "netns.open_file('/no/such/file')",
        "netns.netlink()",
    ],
)
def test_aborts_where_the_way_back_is_barred(call: str, no_way_back: str) -> None:
    code = f"""
    import resource
    from cni.kernel.netns import NetNS
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    netns = NetNS.create()
    print("made", flush=True)
    try:
        {call}
    finally:
        print("went on in the wrong namespace", flush=True)
    """
    done = python(code, env={"LD_PRELOAD": no_way_back})
    assert done.stdout == "made\n"
    assert done.returncode == -signal.SIGABRT
    assert done.stderr.startswith("cni: return to the network namespace: setns failed; aborting\n")


def test_threads_in_and_out_all_the_time() -> None:
    """Whatever one thread opens inside never shows in another thread's place."""
    spaces = [NetNS.create() for _ in range(4)]
    for number, netns in enumerate(spaces):
        netns.netlink().batch().link_create("bridge", f"br{number}").commit()

    def visit(number: int) -> bool:
        before = where()
        for _ in range(500):
            netns = spaces[number % 4]
            if devices(netns.open_file("/proc/thread-self/net/dev")) != ["lo", f"br{number % 4}"]:
                return False
            if where() != before:
                return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(visit, range(8)))
    for netns in spaces:
        netns.close()
