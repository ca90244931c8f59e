"""Counters on disk: versioned, atomic, and a loss only when the disk is lost."""

import asyncio
import json
import threading

import pytest

from equipoise_sidecar.files import write_atomically
from equipoise_sidecar.snapshots import Snapshots


async def test_what_was_written_is_read_by_the_next_process(tmp_path):
    state = {"counters": {"team/blue": 5}}
    await Snapshots(lambda: state, tmp_path).write()
    assert Snapshots(dict, tmp_path).read() == state


async def test_nothing_is_written_while_nothing_changes(tmp_path):
    state = {"count": 1}
    snapshots = Snapshots(lambda: dict(state), tmp_path)
    await snapshots.write()
    (tmp_path / "counters.json").unlink()
    await snapshots.write()
    assert not (tmp_path / "counters.json").exists()
    state["count"] = 2
    await snapshots.write()
    assert Snapshots(dict, tmp_path).read() == {"count": 2}


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"\xff\xfe", b"[]", b'{"version": 2, "state": {}}', b'{"version": 1, "state": []}'],
)
def test_what_cannot_be_read_is_left_behind(tmp_path, content):
    (tmp_path / "counters.json").write_bytes(content)
    assert Snapshots(dict, tmp_path).read() is None


async def test_a_failing_disk_is_counted_and_tried_again(tmp_path):
    directory = tmp_path / "gone"
    snapshots = Snapshots(lambda: {"a": 1}, directory)
    await snapshots.write()
    assert snapshots.write_errors == 1
    directory.mkdir()
    await snapshots.write()
    assert json.loads((directory / "counters.json").read_text())["state"] == {"a": 1}


async def test_two_writes_never_go_on_at_once_and_the_newest_stands(tmp_path, monkeypatch):
    """A write that is called off by the end of the process goes on in its thread: the last one waits for it."""
    state, inside, begun, go = {"count": 1}, [], threading.Event(), threading.Event()

    def slow(path, data):
        inside.append("in")
        begun.set()
        assert go.wait(60)
        write_atomically(path, data)
        inside.append("out")

    monkeypatch.setattr("equipoise_sidecar.snapshots.write_atomically", slow)
    snapshots = Snapshots(lambda: dict(state), tmp_path)
    first = asyncio.create_task(snapshots.write())
    await asyncio.to_thread(begun.wait, 60)
    first.cancel()
    await asyncio.wait({first})
    state["count"] = 2
    last = asyncio.create_task(snapshots.write())
    await asyncio.sleep(0.05)
    go.set()
    await last
    assert inside == ["in", "out", "in", "out"]
    assert Snapshots(dict, tmp_path).read() == {"count": 2}


def test_a_file_is_replaced_whole_and_for_its_owner_alone(tmp_path):
    file = tmp_path / "file"
    file.write_text("old")
    file.chmod(0o644)
    write_atomically(file, b"new")
    assert file.read_bytes() == b"new"
    assert file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]
