"""``cni bench``: how long attachments take, for several folders of plugins and ways to run them, side by side.

node        a private node: what is done there reaches nothing else, and nothing is left of it
network     what containers are attached to
subjects    what is measured: executables, with or without an agent, plugins in this process, the bare kernel requests
crew        many calls at once
worker      one subject on a node of its own, doing as it is told
measure     who does what when: rounds, turns
figures     what the times come to
report      as a table, as JSON;  plot  as SVG
"""

from __future__ import annotations


class Failed(Exception):
    """What was to be measured did not work; ``str()`` says what, by whom, and why."""
