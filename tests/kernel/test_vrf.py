"""vrf on this machine's kernel, which may have no VRFs; all else is in tests/vm."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kernel.conftest import Network, Refused, links

NO_VRFS = "this kernel has no VRFs (CONFIG_NET_VRF)"


@pytest.fixture
def network(make_network: Callable[..., Network]) -> Network:
    return make_network(chained=[{"type": "vrf", "vrfname": "blue"}], type="ptp")


@pytest.fixture
def has_vrfs(network: Network) -> bool:
    """As the kernel tells another program."""
    command = ["ip", "link", "add", "red", "type", "vrf", "table", "7"]
    return network.node.container().run(command, check=False).returncode == 0


def test_status_says_whether_the_kernel_has_vrfs(network: Network, has_vrfs: bool) -> None:
    if has_vrfs:
        network.status()
        return
    with pytest.raises(Refused) as refused:
        network.run("STATUS", {})
    assert (refused.value.code, str(refused.value)) == (50, NO_VRFS)


def test_what_add_leaves(network: Network, has_vrfs: bool) -> None:
    """Without VRFs it fails, and says why, and DEL goes through."""
    one = network.attachment()
    if has_vrfs:
        one.add()
        assert "blue" in links(one.container)
    else:
        with pytest.raises(Refused) as refused:
            one.add()
        assert str(refused.value).startswith("cmdAdd failed: could not add VRF blue: ")
        assert refused.value.details == NO_VRFS
        assert "blue" not in links(one.container)
    one.delete()
    assert links(one.container) == {"lo"}
