"""cni.files: state that is whole at any time."""

from __future__ import annotations

import os
import posix
import stat
from pathlib import Path

import pytest

from cni import files


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
    with pytest.raises(OSError, match="Too many levels of symbolic links"):
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
