"""The names for writing a plugin.

    from cni.skel import Config, Plugin, Request, Result, Text

This package's own plugins import each name from its module, which is quicker.
"""

from cni import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    # fmt: off
    from cni.netfilter.iptables import Iptables as Iptables
    from cni.netfilter.naming import (
        chain_name as chain_name, owner_comment as owner_comment, rule_comment as rule_comment,
    )
    from cni.netfilter.nftables import Layout as Layout, Nft as Nft
    from cni.netfilter.ruleset import Ruleset as Ruleset, establish as establish, in_both_backends as in_both_backends
    from cni.skel.config import (
        Address as Address, Choice as Choice, Config as Config, Field as Field, Flag as Flag, Integer as Integer,
        LinkName as LinkName, ListOf as ListOf, MapOf as MapOf, Network as Network, Object as Object,
        Resolver as Resolver, RouteTo as RouteTo, Section as Section, Settings as Settings, Table as Table,
        Text as Text,
    )
    from cni.skel.delegation import delegate as delegate
    from cni.skel.plugin import Plugin as Plugin
    from cni.skel.request import Request as Request
    from cni.spec.errors import (
        DECODING_FAILURE as DECODING_FAILURE, INCOMPATIBLE_CNI_VERSION as INCOMPATIBLE_CNI_VERSION,
        INTERNAL as INTERNAL, INVALID_ENVIRONMENT_VARIABLES as INVALID_ENVIRONMENT_VARIABLES,
        INVALID_NETNS as INVALID_NETNS, INVALID_NETWORK_CONFIG as INVALID_NETWORK_CONFIG, IO_FAILURE as IO_FAILURE,
        LIMITED_CONNECTIVITY as LIMITED_CONNECTIVITY, PLUGIN_NOT_AVAILABLE as PLUGIN_NOT_AVAILABLE,
        TRY_AGAIN_LATER as TRY_AGAIN_LATER, UNKNOWN as UNKNOWN, UNKNOWN_CONTAINER as UNKNOWN_CONTAINER,
        UNSUPPORTED_FIELD as UNSUPPORTED_FIELD, CNIError as CNIError, ConfigError as ConfigError,
    )
    from cni.spec.ip import CIDR as CIDR, IP as IP
    from cni.spec.result import (
        DNS as DNS, Interface as Interface, IPConfig as IPConfig, Result as Result, Route as Route,
    )
    from cni.system.undo import Undo as Undo, do_all as do_all
    # fmt: on
else:
    __getattr__, __dir__ = lazy_names(
        globals(),
        {
            "cni.netfilter.iptables": "Iptables",
            "cni.netfilter.naming": "chain_name owner_comment rule_comment",
            "cni.netfilter.nftables": "Layout Nft",
            "cni.netfilter.ruleset": "Ruleset establish in_both_backends",
            "cni.skel.config": (
                "Address Choice Config Field Flag Integer LinkName ListOf MapOf Network Object Resolver RouteTo "
                "Section Settings Table Text"
            ),
            "cni.skel.delegation": "delegate",
            "cni.skel.plugin": "Plugin",
            "cni.skel.request": "Request",
            "cni.spec.errors": (
                "DECODING_FAILURE INCOMPATIBLE_CNI_VERSION INTERNAL INVALID_ENVIRONMENT_VARIABLES INVALID_NETNS "
                "INVALID_NETWORK_CONFIG IO_FAILURE LIMITED_CONNECTIVITY PLUGIN_NOT_AVAILABLE TRY_AGAIN_LATER "
                "UNKNOWN UNKNOWN_CONTAINER UNSUPPORTED_FIELD CNIError ConfigError"
            ),
            "cni.spec.ip": "CIDR IP",
            "cni.spec.result": "DNS IPConfig Interface Result Route",
            "cni.system.undo": "Undo do_all",
        },
    )
