"""``cni bench``: the duration of attachments, for several folders of plugins and ways to run them, side by side.

network     the network that containers are attached to
subjects    what is measured: executables, with or without an agent, plugins in this process, the bare kernel requests
parallel    many calls at once
worker      a subject in a process and on a private node (cni.node.scratch) of its own
measure     the order of the calls: settings, rounds, turns
figures     statistics of the durations
report      the results as tables and as JSON;  plot  as SVG
"""

from __future__ import annotations


class Failed(Exception):
    """A call that was to be measured failed. ``str()`` names the call, the subject and the reason."""
