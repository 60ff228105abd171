"""The executables under the plugins' names: what is in them, what they start, and how they are put in place."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from cni.invoke import launcher
from cni.invoke.launcher import MAGIC, PACKAGES, TRAILER_SIZE, Trailer
from cni.spec import version
from tests.waiting import LIMIT

ROOT = Path(__file__).parents[2]
PROGRAM = Path(PACKAGES) / "cni" / "_launcher"
VERSIONS = version.PluginInfo(version.ALL).encode()

# A plugin that prints what it was given, and the line that makes it known.
ECHO = """
import posix, sys

class Echo:
    def main(self):
        sys.stdout.write(repr(sys.argv[1:]) + posix.environ.get(b"ECHO", b"").decode())
        sys.stdout.flush()
        posix._exit(3)

plugin = Echo()
"""


def run(
    *command: str | os.PathLike[str], executable: str | None = None, **environ: str
) -> subprocess.CompletedProcess[str]:
    """With nothing in the environment but what is named."""
    return subprocess.run(
        command,
        executable=executable,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """The message of the error JSON on stdout."""
    assert done.returncode == 1, done
    error = json.loads(done.stdout)
    assert set(error) == {"code", "msg"}
    assert error["code"] == 999
    assert done.stderr == ""
    message: str = error["msg"]
    assert message.endswith("; run 'cni install' again")
    return message


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """A launcher with any trailer."""

    def make(
        reference: str = "cni_plugins.main.loopback:plugin",
        interpreter: str = sys.executable,
        folders: tuple[str, ...] = (PACKAGES,),
        name: str = "plugin",
    ) -> Path:
        path = tmp_path / name
        path.write_bytes(PROGRAM.read_bytes() + Trailer(interpreter, folders, reference).encode())
        path.chmod(0o755)
        return path

    return make


@pytest.fixture
def echo(make: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "their packages"
    folder.mkdir()
    (folder / "echo_plugin.py").write_text(ECHO)
    return make("echo_plugin:plugin", folders=(PACKAGES, str(folder)))


class TestTrailer:
    @pytest.mark.parametrize(
        "fields",
        [
            ("/usr/bin/python3", ("/usr/lib/python3/dist-packages",), "cni_plugins.main.bridge:plugin"),
            ("/opt/ünï/python", ("/a", "/b c", "/d'\"\\"), "a.b:c"),
            ("/\udcff/python", ("/\udcfe",), "a:b"),
            ("", ("",), ""),
        ],
    )
    def test_round_trip(self, fields: tuple[str, tuple[str, ...], str], tmp_path: Path) -> None:
        data = Trailer(*fields).encode()
        assert len(data) == TRAILER_SIZE
        file = tmp_path / "file"
        file.write_bytes(b"something before" + data)
        for found in (Trailer.decode(data), launcher.read(str(file))):
            assert found
            assert (found.interpreter, found.folders, found.reference) == fields

    def test_as_long_as_it_may_be(self) -> None:
        room = TRAILER_SIZE - len(MAGIC) - len("/p\0") - len("a:b\0") - 1
        data = Trailer("/p", ("x" * room,), "a:b").encode()
        found = Trailer.decode(data)
        assert found
        assert (found.folders, found.reference) == (("x" * room,), "a:b")
        with pytest.raises(ValueError, match="too long"):
            Trailer("/p", ("x" * (room + 1),), "a:b").encode()

    def test_colon_in_a_folder(self) -> None:
        with pytest.raises(ValueError, match="cannot have a colon"):
            Trailer("/p", ("/a:b",), "a:b").encode()

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            MAGIC,
            bytes(TRAILER_SIZE),
            MAGIC.ljust(TRAILER_SIZE - 1, b"\0"),
            MAGIC.ljust(TRAILER_SIZE + 1, b"\0"),
            MAGIC.ljust(TRAILER_SIZE, b"x"),
            (MAGIC + b"a\0b\0").ljust(TRAILER_SIZE, b"x"),
            b"cni launcher 2\n\0".ljust(TRAILER_SIZE, b"\0"),
        ],
    )
    def test_something_else(self, data: bytes, tmp_path: Path) -> None:
        assert Trailer.decode(data) is None
        file = tmp_path / "file"
        file.write_bytes(data)
        assert launcher.read(str(file)) is None

    @pytest.mark.parametrize("path", ["/bin/sh", "/dev/null", "/", "/no/such/file", "/proc/self/mem"])
    def test_foreign_files(self, path: str) -> None:
        assert launcher.read(path) is None

    def test_ours(self) -> None:
        assert Trailer("/p", (PACKAGES, "/b"), "a:b").is_ours
        assert not Trailer("/p", ("/b", PACKAGES), "a:b").is_ours

    def test_load(self) -> None:
        assert launcher.load("cni.invoke.launcher:PACKAGES") == PACKAGES
        with pytest.raises(ImportError):
            launcher.load("cni.nothing:plugin")
        with pytest.raises(AttributeError):
            launcher.load("cni.invoke.launcher:nothing")


class TestStart:
    def test_plugin(self, make: Callable[..., Path]) -> None:
        done = run(make(), CNI_COMMAND="VERSION")
        assert (done.returncode, done.stdout.strip(), done.stderr) == (0, VERSIONS.strip(), "")

    def test_arguments_and_exit_code_are_passed_on(self, echo: Path) -> None:
        done = run(echo, "-c", "--", "", "two words", "ünï", "*", ECHO=" here")
        assert (done.stdout, done.returncode) == ("['-c', '--', '', 'two words', 'ünï', '*'] here", 3)

    def test_many_arguments(self, echo: Path) -> None:
        many = [str(number) for number in range(3000)]
        assert run(echo, *many).stdout == repr(many)

    @pytest.mark.parametrize("argv", [[""], ["no/such/name"], ["-I"], ["x" * 5000]])
    def test_argv0_does_not_matter(self, argv: list[str], echo: Path) -> None:
        assert run(*argv, executable=str(echo)).stdout == "[]"

    def test_without_any_argv(self, echo: Path, tmp_path: Path) -> None:
        """Kernels before 5.18 let a program have none."""
        code = "#include <unistd.h>\nint main(int c, char **v) { return execve(v[1], v + 2, 0); }"
        starter = tmp_path / "starter"
        subprocess.run(["gcc", "-x", "c", "-", "-o", starter, "-w"], input=code, text=True, check=True)
        assert run(starter, echo).stdout == "[]"

    def test_environment_does_not_reach_the_interpreter(self, echo: Path, tmp_path: Path) -> None:
        (tmp_path / "sys.py").write_text("raise SystemExit('wrong')")
        (tmp_path / "posix.py").write_text("raise SystemExit('wrong')")
        environ = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nowhere", "PYTHONSTARTUP": "/x", "PYTHONINSPECT": "1"}
        assert run(echo, **environ).stdout == "[]"
        here = subprocess.run([echo], cwd=tmp_path, env={}, capture_output=True, text=True)
        assert here.stdout == "[]"

    def test_plain_copy_elsewhere_under_another_name(self, make: Callable[..., Path], tmp_path: Path) -> None:
        elsewhere = tmp_path / "else where"
        elsewhere.mkdir()
        copy = shutil.copy(make(), elsewhere / "other-name")
        (tmp_path / "plugin").unlink()
        (elsewhere / "link").symlink_to("other-name")
        os.link(copy, elsewhere / "hard")
        for name in ("other-name", "link", "hard"):
            assert run(elsewhere / name, CNI_COMMAND="VERSION").stdout.strip() == VERSIONS.strip()
        found = subprocess.run(
            ["other-name"], env={"PATH": str(elsewhere), "CNI_COMMAND": "VERSION"}, capture_output=True
        )
        assert found.returncode == 0

    def test_works_while_it_is_replaced(self, echo: Path) -> None:
        """It reads the file that was started, not the one that has its name now."""
        echo.with_name("new").write_text("#!/bin/false")
        fd = os.open(echo, os.O_RDONLY)
        os.set_inheritable(fd, True)
        echo.with_name("new").rename(echo)
        done = subprocess.run([f"/proc/self/fd/{fd}"], pass_fds=[fd], env={}, capture_output=True, text=True)
        os.close(fd)
        assert done.stdout == "[]"

    @pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
    def test_closed_standard_descriptors(self, closed: str, echo: Path) -> None:
        done = run("/bin/sh", "-c", f'"$1" {closed}', "sh", echo)
        assert (done.stdout, done.returncode) == ("[]", 3)

    def test_missing_interpreter(self, make: Callable[..., Path]) -> None:
        done = run(make(interpreter="/no/such/python3"), CNI_COMMAND="ADD")
        assert complaint(done).startswith("start the interpreter /no/such/python3: No such file or directory; ")

    def test_interpreter_that_is_none(self, make: Callable[..., Path], tmp_path: Path) -> None:
        (tmp_path / "python").write_text("nothing")
        message = complaint(run(make(interpreter=str(tmp_path / "python"))))
        assert "python: Permission denied" in message

    def test_odd_characters_are_escaped(self, make: Callable[..., Path]) -> None:
        odd = 'a "quoted" \\ \n\t\x01 ünï'
        message = complaint(run(make(interpreter=odd)))
        assert message.startswith(f"start the interpreter {odd}: ")

    def test_missing_packages(self, make: Callable[..., Path]) -> None:
        message = complaint(run(make(folders=("/no/such/packages",))))
        assert message.startswith("import cni_plugins.main.loopback:plugin from /no/such/packages: No module named")

    @pytest.mark.parametrize(
        "reference", ["cni_plugins.nothing:plugin", "cni.invoke.launcher:nothing", "cni_plugins.main:x"]
    )
    def test_missing_plugin(self, reference: str, make: Callable[..., Path]) -> None:
        assert complaint(run(make(reference))).startswith(f"import {reference} from {PACKAGES}: ")

    @pytest.mark.parametrize("cut", [1, 17, TRAILER_SIZE - 1, TRAILER_SIZE])
    def test_truncated(self, cut: int, make: Callable[..., Path]) -> None:
        path = make()
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - cut)
        assert launcher.read(str(path)) is None
        assert complaint(run(path)).startswith(f"read the launcher trailer of {path}: Exec format error; ")

    def test_something_was_appended(self, make: Callable[..., Path]) -> None:
        path = make()
        with path.open("ab") as file:
            file.write(b"x")
        complaint(run(path))

    @pytest.mark.parametrize("filler", [b"\0", b"x"])
    def test_rubbish_in_the_trailer(self, filler: bytes, make: Callable[..., Path]) -> None:
        """Strings that never end are ended by the trailer's own end."""
        path = make()
        program = path.read_bytes()[:-TRAILER_SIZE]
        path.write_bytes(program + MAGIC.ljust(TRAILER_SIZE, filler))
        assert complaint(run(path)).startswith("start the interpreter ")


class TestProgram:
    def test_is_one_file_alone(self) -> None:
        """Linked statically where that is possible, else with the C library and nothing more."""
        done = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True)
        libraries = [line.split()[0] for line in done.stdout.splitlines() if "=>" in line]
        assert set(libraries) <= {"libc.so.6"}

    def test_the_compiler_has_nothing_to_say(self, tmp_path: Path) -> None:
        source = ROOT / "src" / "launcher" / "launcher.c"
        warnings = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
        options = ["-std=gnu11", "-O2", '-DBOOT=""', *warnings]  # BOOT: boot.py as a C string
        subprocess.run(["gcc", *options, source, "-o", tmp_path / "launcher"], check=True)


def install(folder: Path, *packages: Path) -> subprocess.CompletedProcess[str]:
    """`cni install`, from a folder where no package is."""
    path = os.pathsep.join([*map(str, packages), PACKAGES, *filter(None, sys.path)])
    command = [sys.executable, "-m", "cni", "install", "--dir", str(folder)]
    return subprocess.run(
        command, cwd="/", env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=LIMIT
    )


class TestInstall:
    def test_is_idempotent(self, tmp_path: Path) -> None:
        folder = tmp_path / "not" / "there" / "yet"
        first = install(folder)
        assert first.returncode == 0, first.stderr
        contents = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert {"bridge", "host-local", "loopback"} <= set(contents)
        assert sorted(first.stdout.splitlines()) == sorted(str(folder / name) for name in contents)
        again = install(folder)
        assert again.stdout == first.stdout
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == contents

    def test_files(self, plugins: Path) -> None:
        for path in plugins.iterdir():
            status = path.lstat()
            assert stat.S_ISREG(status.st_mode)
            assert stat.S_IMODE(status.st_mode) == 0o755
            trailer = launcher.read(str(path))
            assert trailer
            assert trailer.is_ours
            assert os.path.isabs(trailer.interpreter)
            done = run(path, CNI_COMMAND="VERSION")
            assert json.loads(done.stdout)["cniVersion"] == version.CURRENT

    def test_mode_does_not_depend_on_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0o077)
        try:
            install(tmp_path / "bin")
        finally:
            os.umask(before)
        assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "bin").iterdir()} == {0o755}

    def test_link_is_replaced_not_followed(self, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("precious")
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "loopback").symlink_to(tmp_path / "precious")
        assert install(folder).returncode == 0
        assert not (folder / "loopback").is_symlink()
        assert (tmp_path / "precious").read_text() == "precious"

    def test_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        done = install(tmp_path / "file")
        assert done.returncode == 1
        assert done.stderr.startswith("cni install: ")
        assert str(tmp_path / "file") in done.stderr
        assert len(done.stderr.splitlines()) == 1

    def test_failure_leaves_no_temporary_file(self, tmp_path: Path) -> None:
        folder = tmp_path / "bin"
        (folder / "loopback").mkdir(parents=True)
        assert install(folder).returncode == 1
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []

    def test_third_party_plugins(self, tmp_path: Path) -> None:
        """By the entry-point group, from the folder of their own distribution."""
        theirs = tmp_path / "site"
        info = theirs / "their_plugins-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-plugins\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[cni.plugins]\necho = their_plugins.echo:plugin\n")
        (theirs / "their_plugins").mkdir()
        (theirs / "their_plugins" / "__init__.py").touch()
        (theirs / "their_plugins" / "echo.py").write_text(textwrap.dedent(ECHO))
        folder = tmp_path / "bin"
        done = install(folder, theirs)
        assert str(folder / "echo") in done.stdout.splitlines(), done.stderr
        assert {"bridge", "loopback"} <= {path.name for path in folder.iterdir()}
        assert run(folder / "echo", "an argument").stdout == "['an argument']"
        trailer = launcher.read(str(folder / "echo"))
        assert trailer
        assert trailer.folders[-1] == str(theirs)

    def test_who_starts_one_meanwhile_never_notices(self, tmp_path: Path) -> None:
        folder = tmp_path / "bin"
        assert install(folder).returncode == 0
        code = f"""
        import sys
        from pathlib import Path
        from cni.install.executables import install
        for _ in range(50):
            install(Path({str(folder)!r}))
        """
        environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        failures: list[object] = []
        runs = 0
        with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd="/", env=environ) as installing:

            def start() -> None:
                nonlocal runs
                while installing.poll() is None and not failures:
                    done = run(folder / "loopback", CNI_COMMAND="VERSION")
                    if done.returncode or done.stdout.strip() != VERSIONS.strip() or done.stderr:
                        failures.append(done)
                    runs += 1

            starting = [threading.Thread(target=start) for _ in range(2)]
            for thread in starting:
                thread.start()
            for thread in starting:
                thread.join()
        assert failures == []
        assert installing.returncode == 0
        assert runs > 5
        assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []
