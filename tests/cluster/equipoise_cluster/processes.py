"""Child processes that end with this one, however it ends.

Each child asks the kernel for SIGKILL at its parent's death. The kernel means the parent *thread*: so one thread of this
module starts every child and lives as long as the process, and callers may come from any thread, also from one of an
event loop's short-lived pool.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from equipoise_cluster.errors import ClusterError

_starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="equipoise-cluster-starter")

# Runs in the child before the program: no code between fork and exec in this process, which has other threads.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent has gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Process:
    """A started program that writes to a log file. Its own session, so that Ctrl-C reaches only us."""

    def __init__(
        self,
        command: Sequence[str | Path],
        log: Path,
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.name = Path(command[0]).name
        self.log = log
        arguments = [str(part) for part in command]
        if not Path(arguments[0]).is_absolute():
            raise ValueError(f"{arguments[0]}: the program's path must be absolute")
        wrapped = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *arguments]

        def start() -> subprocess.Popen[bytes]:
            with log.open("ab") as output:
                return subprocess.Popen(
                    wrapped,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=env,
                    start_new_session=True,
                )

        self._child = _starter.submit(start).result()

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def wait(self, seconds: float) -> int | None:
        """Its exit code, or None if it still runs after that time."""
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to it and to its own children, unless it has ended."""
        if self.exit_code is None:
            os.killpg(self.pid, number)

    def stop(self, seconds: float = 15.0) -> None:
        """SIGTERM, and SIGKILL to what still runs after that time. Also ends a paused one."""
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if self.wait(seconds) is None:
            self.kill()

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self._child.wait()

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def check(self) -> None:
        """Raises ClusterError with the end of the log if it has ended."""
        if self.exit_code is not None:
            raise ClusterError(f"{self.name} ended with code {self.exit_code}. Its log ends:\n{self.tail()}")
