"""The names for writing a plugin.

    from cni.skel import Config, Plugin, Request, Result, Text

This package's own plugins import each name from its module, which is quicker.
"""

from cni import lazy_names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cni.netfilter.iptables import Iptables as Iptables
    from cni.netfilter.naming import chain_name as chain_name
    from cni.netfilter.naming import owner_comment as owner_comment
    from cni.netfilter.naming import rule_comment as rule_comment
    from cni.netfilter.nftables import Layout as Layout
    from cni.netfilter.nftables import Nft as Nft
    from cni.netfilter.ruleset import Ruleset as Ruleset
    from cni.netfilter.ruleset import establish as establish
    from cni.netfilter.ruleset import in_both_backends as in_both_backends
    from cni.skel.config import Address as Address
    from cni.skel.config import Choice as Choice
    from cni.skel.config import Config as Config
    from cni.skel.config import Field as Field
    from cni.skel.config import Flag as Flag
    from cni.skel.config import Integer as Integer
    from cni.skel.config import LinkName as LinkName
    from cni.skel.config import ListOf as ListOf
    from cni.skel.config import MapOf as MapOf
    from cni.skel.config import Network as Network
    from cni.skel.config import Object as Object
    from cni.skel.config import Resolver as Resolver
    from cni.skel.config import RouteTo as RouteTo
    from cni.skel.config import Section as Section
    from cni.skel.config import Settings as Settings
    from cni.skel.config import Table as Table
    from cni.skel.config import Text as Text
    from cni.skel.delegation import delegate as delegate
    from cni.skel.plugin import Plugin as Plugin
    from cni.skel.request import Request as Request
    from cni.spec.errors import DECODING_FAILURE as DECODING_FAILURE
    from cni.spec.errors import INCOMPATIBLE_CNI_VERSION as INCOMPATIBLE_CNI_VERSION
    from cni.spec.errors import INTERNAL as INTERNAL
    from cni.spec.errors import INVALID_ENVIRONMENT_VARIABLES as INVALID_ENVIRONMENT_VARIABLES
    from cni.spec.errors import INVALID_NETNS as INVALID_NETNS
    from cni.spec.errors import INVALID_NETWORK_CONFIG as INVALID_NETWORK_CONFIG
    from cni.spec.errors import IO_FAILURE as IO_FAILURE
    from cni.spec.errors import LIMITED_CONNECTIVITY as LIMITED_CONNECTIVITY
    from cni.spec.errors import PLUGIN_NOT_AVAILABLE as PLUGIN_NOT_AVAILABLE
    from cni.spec.errors import TRY_AGAIN_LATER as TRY_AGAIN_LATER
    from cni.spec.errors import UNKNOWN as UNKNOWN
    from cni.spec.errors import UNKNOWN_CONTAINER as UNKNOWN_CONTAINER
    from cni.spec.errors import UNSUPPORTED_FIELD as UNSUPPORTED_FIELD
    from cni.spec.errors import CNIError as CNIError
    from cni.spec.errors import ConfigError as ConfigError
    from cni.spec.ip import CIDR as CIDR
    from cni.spec.ip import IP as IP
    from cni.spec.result import DNS as DNS
    from cni.spec.result import Interface as Interface
    from cni.spec.result import IPConfig as IPConfig
    from cni.spec.result import Result as Result
    from cni.spec.result import Route as Route
    from cni.system.undo import Undo as Undo
    from cni.system.undo import do_all as do_all
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
