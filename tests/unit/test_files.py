"""cni.system.files: files that are whole at any time, and locks with a timeout."""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cni import _core
from cni.system import files
from tests.waiting import LIMIT, lock_waiters, until


def test_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert files.read(str(path)) is None
    for data in (b"", b"x" * 10000, b"short"):
        files.write(str(path), data)
        assert files.read(str(path)) == path.read_bytes() == data
    files.remove(str(path))
    files.remove(str(path))
    assert os.listdir(tmp_path) == []


def test_modes(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        files.write(str(tmp_path / "a" / "b" / "private"), b"")
        files.write(str(tmp_path / "a" / "public"), b"", 0o644)
        files.make_folders(str(tmp_path / "a" / "c" / "d"), 0o755)
    finally:
        os.umask(mask)
    modes = {str(path.relative_to(tmp_path)): stat.S_IMODE(path.stat().st_mode) for path in tmp_path.rglob("*")}
    private = {"a": 0o700, "a/b": 0o700, "a/b/private": 0o600}
    assert modes == {**private, "a/public": 0o644, "a/c": 0o755, "a/c/d": 0o755}


@pytest.mark.parametrize("path", ["file", "folder/file", "folder//file"])
def test_relative_paths(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write(path, b"data", sync=True)
    assert (tmp_path / path).read_bytes() == b"data"


def test_a_link_is_neither_followed_nor_written_through(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("kept")
    link.symlink_to(target)
    with pytest.raises(OSError, match="too many levels of symbolic links"):
        files.read(str(link))
    files.write(str(link), b"own")
    assert (link.is_symlink(), link.read_text(), target.read_text()) == (False, "own", "kept")


def test_a_fifo_keeps_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert files.read(str(tmp_path / "fifo")) == b""


@pytest.mark.parametrize("sync", [False, True])
def test_the_disk_is_waited_for_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: bool) -> None:
    done: list[str] = []

    def fsync(fd: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")

    def replace(source: str, target: str) -> None:
        done.append("rename")
        rename(source, target)

    rename = posix.rename
    monkeypatch.setattr(posix, "fsync", fsync)
    monkeypatch.setattr(posix, "rename", replace)
    files.write(str(tmp_path / "file"), b"data", sync=sync)
    assert done == (["file", "rename", "folder"] if sync else ["rename"])


@pytest.mark.parametrize("step", ["write", "fsync", "rename"])
@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_what_was(
    step: str, failure: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(posix, step, fail)
    with pytest.raises(type(failure)):
        files.write(str(path), b"new", sync=True)
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"file": "old"}


def test_where_no_folder_can_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        files.write(str(tmp_path / "file" / "below"), b"")


# ---- the core's: by the folder's descriptor ----

SIZES = (0, 1, 4095, 4096, 4097, 8192, 100_000)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def test_files_of_any_size(folder: int, tmp_path: Path) -> None:
    assert _core.read_file(folder, "file") is None
    for size in SIZES:
        data = os.urandom(size)
        for write in (
            lambda data=data: _core.write_file(folder, "file", data),
            lambda data=data: _core.replace_file(folder, "file", ".new", data),
        ):
            (tmp_path / "file").write_bytes(b"longer than what comes next" * 10_000)
            write()
            assert _core.read_file(folder, b"file") == (tmp_path / "file").read_bytes() == data
    assert os.listdir(folder) == ["file"]


def test_what_is_appended(folder: int, tmp_path: Path) -> None:
    for part in (b"one", b"", b" two"):
        _core.write_file(folder, "file", part, append=True)
    assert (tmp_path / "file").read_bytes() == b"one two"


def test_the_modes_of_what_is_made(folder: int, tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        _core.write_file(folder, "written", b"")
        _core.replace_file(folder, "replaced", ".new", b"")
    finally:
        os.umask(mask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


def test_links_are_neither_read_nor_written_through(folder: int, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "link").symlink_to("outside")
    calls: list[Callable[[], object]] = [
        lambda: _core.read_file(folder, "link"),
        lambda: _core.write_file(folder, "link", b"x"),
        lambda: _core.replace_file(folder, "file", "link", b"x"),
    ]
    for call in calls:
        (tmp_path / "link").unlink(missing_ok=True)
        (tmp_path / "link").symlink_to("outside")
        with pytest.raises(_core.KernelError, match='"link": too many levels of symbolic links') as caught:
            call()
        assert caught.value.errno == errno.ELOOP
    assert (tmp_path / "outside").read_bytes() == b"secret"
    (tmp_path / "link").unlink(missing_ok=True)
    (tmp_path / "link").symlink_to("outside")
    _core.replace_file(folder, "link", ".new", b"own")  # the link itself makes room
    assert (tmp_path / "link").read_bytes() == b"own"
    assert (tmp_path / "outside").read_bytes() == b"secret"


def test_a_fifo_is_not_waited_at(folder: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert _core.read_file(folder, "fifo") == b""
    with pytest.raises(_core.KernelError, match='create "fifo": no such device or address'):
        _core.write_file(folder, "fifo", b"x")


def test_a_replacement_that_fails_leaves_nothing(folder: int, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(_core.KernelError, match='rename ".new" to "taken": is a directory'):
        _core.replace_file(folder, "taken", ".new", b"x")
    assert os.listdir(folder) == ["taken"]


def test_a_full_disk(tmp_path: Path) -> None:
    full = os.open("/dev", os.O_RDONLY | os.O_DIRECTORY)
    with pytest.raises(_core.KernelError, match='write "full": no space left on device'):
        _core.write_file(full, "full", b"x")
    os.close(full)


@pytest.mark.parametrize("name", ["a\0b", b"a\0b"])
def test_names_that_are_none(folder: int, name: str | bytes) -> None:
    with pytest.raises(ValueError, match="has a NUL in it"):
        _core.read_file(folder, name)


def test_a_folder_that_is_none() -> None:
    with pytest.raises(_core.KernelError, match='open "file": bad file descriptor'):
        _core.read_file(-1, "file")


# ---- locks ----

Opener = Callable[[], int]


@pytest.fixture
def opening(tmp_path: Path) -> Iterator[Opener]:
    """Open the same file; each call is an opening of its own."""
    descriptors: list[int] = []

    def opened() -> int:
        descriptors.append(os.open(tmp_path / "file", os.O_RDONLY | os.O_CREAT))
        return descriptors[-1]

    yield opened
    for fd in descriptors:
        os.close(fd)


def is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def test_a_free_lock(opening: Opener) -> None:
    first, second = opening(), opening()
    assert files.lock(first, 0)
    assert files.lock(first, 0)
    assert is_locked(second)


def test_a_lock_that_is_let_go_of(opening: Opener) -> None:
    first, second = opening(), opening()
    fcntl.flock(second, fcntl.LOCK_EX)

    def release() -> None:
        until(lambda: lock_waiters(f"/proc/self/fd/{first}"), "a caller that waits for the lock")
        fcntl.flock(second, fcntl.LOCK_UN)

    thread = threading.Thread(target=release)
    thread.start()
    assert files.lock(first, LIMIT)
    thread.join()
    assert is_locked(second)


def test_a_lock_that_is_kept(opening: Opener) -> None:
    first, second = opening(), opening()
    fcntl.flock(second, fcntl.LOCK_EX)
    assert not files.lock(first, 0.05)


def test_what_cannot_be_locked() -> None:
    with pytest.raises(OSError, match="Bad file descriptor"):
        files.lock(1 << 20, 1)
