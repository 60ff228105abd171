"""The ways to find and run plugins: as processes, or within this process."""

from __future__ import annotations

from cni.invoke import exec as invoke

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cni.spec.version import PluginInfo


class Exec:
    """Runs plugins as processes. Override methods to run them in another way, for example in a test.

    `at_once` is the number of attachments that `delete_all` and `gc` delete concurrently; above 1 they use threads.
    """

    at_once = 1

    def find(self, plugin_type: str, path: Sequence[str]) -> str:
        """Return the path of the plugin's executable. Raises CNIError."""
        return invoke.find(plugin_type, path)

    def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
        """Run the plugin for at most `timeout` seconds and return its stdout. Raises CNIError, DeadlineExceeded."""
        return invoke.execute(path, config, environ, timeout)

    def probe_version(self, path: str, timeout: float | None) -> PluginInfo:
        """Ask the plugin which versions it supports. Raises CNIError, DeadlineExceeded."""
        return invoke.probe_version(path, timeout)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


class InProcess(Exec):
    """Runs this package's plugins within this process, which saves nearly all of their time, and others as processes.

    Results, errors and state on disk are the same. But a plugin that runs in this process cannot be killed when its
    timeout expires. Attachments that are deleted at the same time have their links deleted as one group.
    """

    at_once = 64

    def __init__(self) -> None:
        from cni.runtime import group_delete

        group_delete.install()

    def execute(self, path: str, config: bytes, environ: Mapping[str, str], timeout: float | None) -> bytes:
        """Run the plugin and return its stdout; `timeout` applies to processes only. Raises CNIError."""
        return invoke.run(path, config, environ, timeout)

    def probe_version(self, path: str, timeout: float | None) -> PluginInfo:
        """Ask the plugin which versions it supports. Raises CNIError."""
        return invoke.probe_version(path, timeout, invoke.run)
