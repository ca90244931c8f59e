"""How many files the process may have open, and how many of them clients may take.

A waiting request is an open connection, so the queue is never longer than these allow. Container runtimes often start a
process with a soft limit of 1,024.
"""

from __future__ import annotations

import resource

MOST_FILES = 1_048_576
"""Linux' own limit for a process (`fs.nr_open`) unless it was changed."""
_FOR_CLIENTS = 0.75
"""The rest is for connections to the engine, the other ports and the state directory."""


def raise_limit() -> int:
    """Raise the process's soft limit to its hard one; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return max(soft, wanted)


def most_connections() -> int:
    """Return how many connections one port may hold."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return int((MOST_FILES if soft == resource.RLIM_INFINITY else soft) * _FOR_CLIENTS)
