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
    from cni.runtime.aio import AsyncCNI as AsyncCNI
    from cni.runtime.attachment import Attachment as Attachment
    from cni.runtime.attachment import RuntimeConf as RuntimeConf
    from cni.runtime.cache import ResultCache as ResultCache
    from cni.runtime.conf import NetworkConfigList as NetworkConfigList
    from cni.runtime.conf import NoConfigsFound as NoConfigsFound
    from cni.runtime.conf import NotFound as NotFound
    from cni.runtime.conf import PluginConfig as PluginConfig
    from cni.runtime.conf import config_files as config_files
    from cni.runtime.conf import inject as inject
    from cni.runtime.conf import load_network_list as load_network_list
    from cni.runtime.conf import load_plugin as load_plugin
    from cni.runtime.executors import Exec as Exec
    from cni.runtime.executors import InProcess as InProcess
    from cni.runtime.operations import CNI as CNI
    from cni.runtime.operations import CheckNotSupported as CheckNotSupported
    from cni.runtime.operations import PluginFailed as PluginFailed
    from cni.spec.errors import DeadlineExceeded as DeadlineExceeded
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
