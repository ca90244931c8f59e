"""The errors that callers of this package handle: their text says what is wrong and what mends it."""

from collections.abc import Sequence


class ClusterError(Exception):
    """A program is missing, does not start, or answers with an error."""


class CommandError(ClusterError):
    """kubectl or helm refused: `code`, `stderr` and `stdout` say why."""

    def __init__(self, command: Sequence[str], code: int, stderr: str, stdout: str = "") -> None:
        said = (stderr or stdout).strip()
        super().__init__(f"{' '.join(command)} ended with code {code}:\n{said}")
        self.code = code
        self.stderr = stderr
        self.stdout = stdout
