"""Links that go together, and that nothing else ever goes with them."""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, NoReturn

import pytest

from cni import _core
from cni._core import KernelError
from cni.kernel.netns import Home, NetNS
from cni.runtime import group_delete
from cni.runtime.group_delete import GroupDeleter
from tests.kernel.conftest import links
from tests.waiting import LIMIT

if TYPE_CHECKING:
    from tests.conftest import Node

PAIRS = 12


@pytest.fixture
def host(node: Node) -> Iterator[NetNS]:
    with NetNS.open(node.path) as netns:
        yield netns


def attach(node: Node, number: int, ifname: str = "eth0") -> Node:
    container = node.container()
    pair = ["ip", "link", "add", f"port{number}", "type", "veth", "peer", "name", ifname, "netns", container.name]
    node.run(pair)
    return container


def delete_all(deleter: GroupDeleter, host: NetNS, containers: list[Node], ifname: str = "eth0") -> None:
    with ExitStack() as stack, ThreadPoolExecutor(len(containers)) as threads:
        opened = [stack.enter_context(NetNS.open(container.path)) for container in containers]
        list(threads.map(lambda container: deleter.delete(container, ifname, host), opened))


def test_many_at_once(node: Node, host: NetNS, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    real = group_delete._delete_group
    monkeypatch.setattr(
        group_delete, "_delete_group", lambda netlink, batch: (groups.append(len(batch)), real(netlink, batch))[1]
    )
    containers = [attach(node, number) for number in range(PAIRS)]
    node.run(["ip", "link", "add", "bystander", "type", "bridge"])
    delete_all(GroupDeleter(), host, containers)
    assert links(node) == {"lo", "bystander"}
    assert all(links(container) == {"lo"} for container in containers)
    assert max(groups) > 1


def test_links_that_people_have_put_into_groups(node: Node, host: NetNS) -> None:
    node.run(["ip", "link", "add", "bystander", "type", "bridge"])
    node.run(["ip", "link", "set", "bystander", "group", "42"])
    delete_all(GroupDeleter(), host, [attach(node, number) for number in range(3)])
    (bystander,) = node.ip("link", "show", "dev", "bystander")
    assert bystander["group"] == "42"


def test_a_group_that_somebody_else_has_too(node: Node, host: NetNS, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the odds: then each link is deleted by itself."""
    number = group_delete._FIRST_GROUP + 5
    monkeypatch.setattr(group_delete.secrets, "randbelow", lambda _: 5)
    node.run(["ip", "link", "add", "bystander", "type", "bridge"])
    node.run(["ip", "link", "set", "bystander", "group", str(number)])
    delete_all(GroupDeleter(), host, [attach(node, number) for number in range(6)])
    assert links(node) == {"lo", "bystander"}


def test_an_index_that_has_become_another_link(node: Node, host: NetNS) -> None:
    """Between the look at the link and its deletion."""
    containers = [attach(node, number) for number in range(2)]
    deletions = []
    for container in containers:
        with NetNS.open(container.path) as netns, netns.netlink() as inside:
            end = group_delete._other_end(inside, inside.link("eth0"), host)
            assert end
            deletions.append(end)
    node.run(["ip", "link", "delete", "port0"])
    node.run(["ip", "link", "add", "another", "index", str(deletions[0].index), "type", "bridge"])
    with host.netlink() as netlink:
        group_delete._delete_all(netlink, deletions)
    assert "port1" not in links(node)
    assert "another" in links(node)


def test_pairs_whose_other_end_is_elsewhere(node: Node, host: NetNS) -> None:
    """In a third namespace, or in the container itself, where the node has a veth with that very index."""
    elsewhere, container = node.container(), node.container()
    pair = ["ip", "-n", container.name, "link", "add", "eth0", "type", "veth", "peer", "name", "far"]
    node.run([*pair, "netns", elsewhere.name])
    (far,) = elsewhere.ip("link", "show", "dev", "far")
    (near,) = container.ip("link", "show", "dev", "eth0")
    # The same indexes as that pair's, seen from the node.
    other = node.container()
    node.run(
        ["ip", "link", "add", "port", "index", str(far["ifindex"]), "type", "veth", "peer", "name", "eth0",
         "index", str(near["ifindex"]), "netns", other.name]
    )  # fmt: skip
    delete_all(GroupDeleter(), host, [container])
    assert links(container) == {"lo"}
    assert links(elsewhere) == {"lo"}
    assert "port" in links(node)
    assert "eth0" in links(other)


def test_other_kinds_of_links(node: Node, host: NetNS) -> None:
    containers = [node.container() for _ in range(4)]
    for container in containers:
        container.run(["ip", "link", "add", "eth0", "type", "bridge"])
    delete_all(GroupDeleter(), host, containers)
    assert all(links(container) == {"lo"} for container in containers)


def test_a_link_that_is_gone(node: Node, host: NetNS) -> None:
    delete_all(GroupDeleter(), host, [node.container()])


def test_a_link_that_cannot_be_deleted(node: Node, host: NetNS) -> None:
    """It is its own caller's failure, and nobody else's."""
    container = attach(node, 0)
    deleter = GroupDeleter()
    with ThreadPoolExecutor(4) as threads, NetNS.open(container.path) as netns:
        failing = [threads.submit(deleter.delete, host, "lo", None) for _ in range(3)]
        fine = threads.submit(deleter.delete, netns, "eth0", host)
        for job in failing:
            with pytest.raises(KernelError):
                job.result()
        fine.result()
    assert links(node) == {"lo"}


@pytest.mark.parametrize(
    ("place", "name", "error"),
    [
        (group_delete, "Netlink", OSError(errno.EMFILE, "too many open files")),
        (group_delete._Worker, "_start", RuntimeError("can't start new thread")),
    ],
)
def test_what_cannot_begin(
    node: Node, host: NetNS, monkeypatch: pytest.MonkeyPatch, place: object, name: str, error: Exception
) -> None:
    """No descriptor, or no thread, may be had: all that wait are told, whoever leads them, and later it works."""
    deleter = GroupDeleter()
    containers = [attach(node, number) for number in range(6)]
    with monkeypatch.context() as patch:
        patch.setattr(place, name, refusing(error))
        for _ in range(2 * group_delete._WORKERS):
            assert outcomes(deleter, host, containers) == [error] * len(containers)
    assert deleter.pending == 0
    delete_all(deleter, host, containers)
    assert links(node) == {"lo"}


def test_who_leads_is_interrupted(node: Node, host: NetNS, monkeypatch: pytest.MonkeyPatch) -> None:
    deleter = GroupDeleter()
    containers = [attach(node, number) for number in range(2)]
    with monkeypatch.context() as patch:
        patch.setattr(deleter, "_await_kernel", refusing(KeyboardInterrupt()))
        for _ in range(2 * group_delete._WORKERS):
            with NetNS.open(containers[0].path) as netns, pytest.raises(KeyboardInterrupt):
                deleter.delete(netns, "eth0", host)
    assert deleter.pending == 0
    delete_all(deleter, host, containers)
    assert links(node) == {"lo"}


def test_many_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is made to lead just when it begins to wait leads once, and everybody is let go."""
    monkeypatch.setattr(group_delete._Worker, "delete", lambda self, batch: (time.sleep(0), self._free.put(self)))
    deleter = GroupDeleter()
    monkeypatch.setattr(deleter, "_await_kernel", lambda: None)

    def many() -> None:
        for _ in range(4000):
            deleter._submit(group_delete.Deletion(None, 1, ("x", "veth", 2)))  # type: ignore[arg-type]

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=many, daemon=True) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT)
    finally:
        sys.setswitchinterval(before)
    assert not any(thread.is_alive() for thread in threads)
    assert deleter.pending == 0


def test_the_agents_own_socket_stays_free(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deletion that waits for the kernel has a socket of its own; the thread that asked goes on with its own."""
    container = attach(node, 0)
    used: list[type] = []
    real = group_delete._delete_all
    monkeypatch.setattr(
        group_delete, "_delete_all", lambda netlink, batch: (used.append(type(netlink)), real(netlink, batch))
    )
    with NetNS.open(node.path) as there, NetNS.open(container.path) as netns:
        GroupDeleter().delete(netns, "eth0", there.run(Home.current))
    assert used == [_core.Netlink]
    assert links(node) == {"lo"}


def refusing(error: BaseException) -> Callable[..., NoReturn]:
    def refuse(*_: object) -> NoReturn:
        raise error

    return refuse


def outcomes(deleter: GroupDeleter, host: NetNS, containers: list[Node]) -> list[BaseException | None]:
    """Return what each of them was told, asked for side by side."""
    with ExitStack() as stack, ThreadPoolExecutor(len(containers)) as threads:
        opened = [stack.enter_context(NetNS.open(container.path)) for container in containers]
        jobs = [threads.submit(deleter.delete, netns, "eth0", host) for netns in opened]
        return [job.exception() for job in jobs]
