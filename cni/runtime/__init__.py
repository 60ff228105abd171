"""The runtime library: load network configurations, run their plugins, remember the results.

    from cni.runtime import CNI, RuntimeConf, load_network_list

    network = load_network_list("/etc/cni/net.d", "mynet")
    cni = CNI(path=["/opt/cni/bin"])
    result = cni.add(network, RuntimeConf("cid", "/run/netns/pod", "eth0"), timeout=30)

``AsyncCNI`` offers the same operations as coroutines. Names are imported when first used: a program that only loads
configurations does not pay for the rest.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.runtime.aio import AsyncCNI
    from cni.runtime.cache import Attachment, ResultCache
    from cni.runtime.conf import (
        NetworkConfigList,
        NoConfigsFound,
        NotFound,
        PluginConfig,
        config_files,
        inject,
        load_network_list,
        load_plugin,
    )
    from cni.runtime.operations import (
        CNI,
        CheckNotSupported,
        DeadlineExceeded,
        Exec,
        InProcess,
        PluginFailed,
        RuntimeConf,
    )

__all__ = [
    "CNI",
    "AsyncCNI",
    "Attachment",
    "CheckNotSupported",
    "DeadlineExceeded",
    "Exec",
    "InProcess",
    "NetworkConfigList",
    "NoConfigsFound",
    "NotFound",
    "PluginConfig",
    "PluginFailed",
    "ResultCache",
    "RuntimeConf",
    "config_files",
    "inject",
    "load_network_list",
    "load_plugin",
]

_HOMES = {
    "aio": ("AsyncCNI",),
    "cache": ("Attachment", "ResultCache"),
    "conf": (
        "NetworkConfigList",
        "NoConfigsFound",
        "NotFound",
        "PluginConfig",
        "config_files",
        "inject",
        "load_network_list",
        "load_plugin",
    ),
    "operations": ("CNI", "CheckNotSupported", "DeadlineExceeded", "Exec", "InProcess", "PluginFailed", "RuntimeConf"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(__import__(f"{__name__}.{home}", fromlist=(name,)), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
