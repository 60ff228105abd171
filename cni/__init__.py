"""The Container Network Interface for Python.

``cni.kernel.netns`` has network namespaces as objects, ``cni.runtime`` what a container runtime needs, ``cni.skel`` the
frame of a plugin; docs/explanation/architecture.md tells where the rest is.
"""

__version__ = "0.1.0"
