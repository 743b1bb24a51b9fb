"""Finds plugins, keeps broken ones from breaking the rest, and turns names into what they offer.

Listing plugins imports the plugin modules only; what they offer loads when it is asked for.
"""

from ._chains import DEFAULT_ROUNDER, Chain, Step
from ._host import Host, host_of, load_plugins
from ._names import normalise
from ._records import PluginRecord
from ._targets import Target

__all__ = [
    "DEFAULT_ROUNDER",
    "Chain",
    "Host",
    "PluginRecord",
    "Step",
    "Target",
    "host_of",
    "load_plugins",
    "normalise",
]
