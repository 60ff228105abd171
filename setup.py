"""Build the native parts: the Cython core, the libnftables binding, the launcher.

Environment: SANITIZE=1 builds with AddressSanitizer and UBSan; DEBUG=1 with -O0 -g.
The package's metadata is in pyproject.toml.
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

CORE = Path("src/_cnicore")
LAUNCHER = Path("src/launcher")
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]


def flags() -> tuple[list[str], list[str]]:
    """Return the arguments for the compiler and for the linker."""
    if os.environ.get("SANITIZE"):
        sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
        return ["-O1", "-g", *sanitizers], sanitizers
    if os.environ.get("DEBUG"):
        return ["-O0", "-g"], []
    return ["-O2", "-g0"], ["-s"]


def boot_program() -> str:
    """Return src/launcher/boot.py without its comments and blank lines, indented by one space."""
    program = ast.unparse(ast.parse((LAUNCHER / "boot.py").read_text()))
    return re.sub("^(    )+", lambda indent: " " * (len(indent[0]) // 4), program, flags=re.MULTILINE)


class BuildNative(build_ext):
    """build_ext that also builds the launcher, an executable that is shipped as package data."""

    def run(self) -> None:
        super().run()
        folder = Path("cni") if self.inplace else Path(self.build_lib, "cni")
        folder.mkdir(parents=True, exist_ok=True)
        self.build_launcher(folder / "_launcher")
        if not self.inplace and Path(self.build_lib, "cni/invoke/bundle.py").exists():  # not if build_ext runs alone
            self.build_bundle(Path(self.build_lib))

    def build_bundle(self, root: Path) -> None:
        """Write all modules that plugins import into one file (cni/invoke/bundle.py)."""
        # Without debug ranges: every instruction's columns, for tracebacks, take a fifth of the code.
        subprocess.run([sys.executable, "-X", "no_debug_ranges", "cni/invoke/bundle.py", str(root)], check=True)

    def build_launcher(self, target: Path) -> None:
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
        compiled = Path(self.build_temp, "launcher.o")
        compiled.parent.mkdir(parents=True, exist_ok=True)
        # Two steps: a compiler that contains several C libraries provides no headers when it is told to link with none.
        source = [f"-DBOOT={json.dumps(boot_program())}", str(LAUNCHER / "launcher.c")]
        compile_ = [*compiler, "-std=gnu11", "-Os", *WARNINGS, "-c", *source, "-o", str(compiled)]
        link = [*compiler, str(compiled), "-o", str(target), "-s"]
        freestanding = ["-DFREESTANDING", "-ffreestanding", "-fno-stack-protector", "-fno-pie"]
        freestanding += ["-fno-asynchronous-unwind-tables"]  # nothing there unwinds a stack
        # Without a C library if system.h has the processor's system calls, else with a static one, else with a shared.
        for compiling, linking in ((freestanding, ["-nostdlib", "-no-pie", "-static"]), ([], ["-static"]), ([], [])):
            steps = ([*compile_, *compiling], [*link, *linking])
            if all(subprocess.run(step, stderr=subprocess.DEVNULL, check=False).returncode == 0 for step in steps):
                break
        else:
            for step in steps:
                subprocess.run(step, check=True)  # shows the errors
        target.chmod(0o755)


compile_args, link_args = flags()
core = Extension(
    "cni._core",
    [str(CORE / name) for name in ("_core.pyx", "addresses.c", "error.c", "files.c", "netlink.c", "netns.c")],
    include_dirs=[str(CORE)],
    depends=[str(path) for pattern in ("*.h", "*.pxi", "includes/*.pxd") for path in CORE.glob(pattern)],
    extra_compile_args=["-std=gnu11", *WARNINGS, *compile_args],
    extra_link_args=link_args,
)

setup(
    # `plugins/` is the package cni_plugins (pyproject.toml).
    packages=[
        *find_packages(include=["cni", "cni.*"]),
        "cni_plugins",
        *(f"cni_plugins.{name}" for name in find_packages("plugins")),
    ],
    ext_modules=cythonize([core], include_path=[str(CORE)], build_dir="build/cython"),
    cffi_modules=[str(CORE / "nftables_build.py") + ":ffibuilder"],
    cmdclass={"build_ext": BuildNative},
)
