"""The Container Network Interface for Python: the names that a program which attaches containers needs.

    from cni import CNI, NetNS, RuntimeConf, load_network_list

`cni.skel` has the names for writing a plugin, `cni.kernel` those for links, addresses and routes. All public names are
in docs/reference/python.md; docs/explanation/architecture.md says where everything else is.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def lazy_names(
    namespace: "dict[str, object]", modules: "Mapping[str, str]"
) -> "tuple[Callable[[str], object], Callable[[], list[str]]]":
    """Return `__getattr__` and `__dir__` of a package whose names are imported at their first use (PEP 562).

    `namespace` is the package's, `modules` maps modules to the names that are taken from them, separated by spaces.
    Plugins' processes run this too: the names are not even split before one of them, or `__all__`, is asked for.
    """

    def list_names() -> list[str]:
        return " ".join(modules.values()).split()

    def import_name(name: str) -> object:
        if name == "__all__":
            return list_names()
        for module, names in modules.items():
            if name in names.split():
                value: object = getattr(__import__(module, fromlist=(name,)), name)
                namespace[name] = value
                return value
        raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")

    return import_name, lambda: sorted({*namespace, *list_names()})


if TYPE_CHECKING:
    # fmt: off
    from cni.kernel.netns import NetNS as NetNS, NetNSNotFound as NetNSNotFound, NotANetNS as NotANetNS
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
    from cni.spec.errors import CNIError as CNIError, ConfigError as ConfigError, DeadlineExceeded as DeadlineExceeded
    from cni.spec.ip import CIDR as CIDR, IP as IP
    from cni.spec.result import (
        DNS as DNS, Interface as Interface, IPConfig as IPConfig, Result as Result, Route as Route,
    )
    from cni.spec.version import PluginInfo as PluginInfo
    # fmt: on
else:
    __getattr__, __dir__ = lazy_names(
        globals(),
        {
            "cni.kernel.netns": "NetNS NetNSNotFound NotANetNS",
            "cni.runtime.aio": "AsyncCNI",
            "cni.runtime.attachment": "Attachment RuntimeConf",
            "cni.runtime.cache": "ResultCache",
            "cni.runtime.conf": (
                "NetworkConfigList NoConfigsFound NotFound PluginConfig config_files inject load_network_list "
                "load_plugin"
            ),
            "cni.runtime.executors": "Exec InProcess",
            "cni.runtime.operations": "CNI CheckNotSupported PluginFailed",
            "cni.spec.errors": "CNIError ConfigError DeadlineExceeded",
            "cni.spec.ip": "CIDR IP",
            "cni.spec.result": "DNS IPConfig Interface Result Route",
            "cni.spec.version": "PluginInfo",
        },
    )
