"""The runtime library: load network configurations, run their plugins, cache the results.

    from cni.runtime import CNI, RuntimeConf, load_network_list

    network = load_network_list("/etc/cni/net.d", "mynet")
    cni = CNI(path=["/opt/cni/bin"])
    result = cni.add(network, RuntimeConf("cid", "/run/netns/pod", "eth0"), timeout=30)

`AsyncCNI` offers the same operations as coroutines. The names are those of `cni`, imported at their first use.
"""

from cni import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    # fmt: off
    from cni.runtime.aio import AsyncCNI as AsyncCNI
    from cni.runtime.attachment import Attachment as Attachment, RuntimeConf as RuntimeConf
    from cni.runtime.cache import ResultCache as ResultCache
    from cni.runtime.conf import (
        NetworkConfigList as NetworkConfigList, NoConfigsFound as NoConfigsFound, NotFound as NotFound,
        PluginConfig as PluginConfig, config_files as config_files, inject as inject,
        load_network_list as load_network_list, load_plugin as load_plugin,
    )
    from cni.runtime.executors import Exec as Exec, InProcess as InProcess
    from cni.runtime.operations import CNI as CNI, CheckNotSupported as CheckNotSupported, PluginFailed as PluginFailed
    from cni.spec.errors import DeadlineExceeded as DeadlineExceeded
    # fmt: on
else:
    __getattr__, __dir__ = lazy_names(
        globals(),
        {
            "cni.runtime.aio": "AsyncCNI",
            "cni.runtime.attachment": "Attachment RuntimeConf",
            "cni.runtime.cache": "ResultCache",
            "cni.runtime.conf": (
                "NetworkConfigList NoConfigsFound NotFound PluginConfig config_files inject load_network_list "
                "load_plugin"
            ),
            "cni.runtime.executors": "Exec InProcess",
            "cni.runtime.operations": "CNI CheckNotSupported PluginFailed",
            "cni.spec.errors": "DeadlineExceeded",
        },
    )
