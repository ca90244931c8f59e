"""A temporary folder for a control plane's state that does not outlive its owner by long.

The owner holds a lock on a file in it. The kernel releases that lock however the owner ends, so that the next one to
start removes what a killed one left (some 100 MB of etcd's).
"""

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "equipoise-cluster-"
_LOCK = ".owner"


class TemporaryState:
    """The folder. `remove()` ends it."""

    def __init__(self) -> None:
        remove_abandoned()
        # It gets its final name once it is locked, so that no other process takes it for an abandoned one.
        unnamed = Path(tempfile.mkdtemp(prefix="equipoise-starting-"))
        self._lock = os.open(unnamed / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = unnamed.with_name(unnamed.name.replace("equipoise-starting-", _PREFIX))
        unnamed.rename(self.folder)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def remove_abandoned() -> None:
    """Removes the folders of this user whose owner has gone."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if folder.stat().st_uid != os.getuid():
            continue
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue
        finally:
            os.close(lock)
