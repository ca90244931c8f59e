"""The builder builds each program once, goes on where it was stopped, and says what is wrong with Go."""

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise_cluster.builder import Builder
from equipoise_cluster.errors import ClusterError
from equipoise_cluster.programs import Module, Program

SERVER, CLIENT = "example.com/fake-server", "example.com/fake-client"


def until(holds, seconds=90.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_each_program_is_built_once_and_progress_counts_them(workshop):
    builder = Builder(workshop.cache, workshop.progress)
    builder.build(workshop.programs)
    builder.build(workshop.programs)
    assert workshop.builds == [SERVER, CLIENT]
    assert [builder.built(program) for program in workshop.programs] == [
        builder.bin / "fake-server",
        builder.bin / "fake-client",
    ]
    assert subprocess.check_output([builder.bin / "fake-server"], text=True) == "v1.36.9\n"
    _, first, second = workshop.progress.steps
    assert first.startswith("[1/2] fake-server: built in ")
    assert second.startswith("[2/2] fake-client: built in ")
    assert any("[1/2] fake-server: fetching Go modules" in text for text in workshop.progress.updates)


def test_an_interrupted_build_keeps_no_half_program_and_goes_on(workshop, monkeypatch):
    monkeypatch.setenv("HANG", CLIENT)

    def interrupt(_):
        if workshop.builds[-1:] == ["hanging"]:
            raise KeyboardInterrupt

    monkeypatch.setattr(workshop.progress, "update", interrupt)
    builder = Builder(workshop.cache, workshop.progress)
    server, client = workshop.programs
    with pytest.raises(KeyboardInterrupt):
        builder.build(workshop.programs)
    assert builder.built(server)
    assert builder.built(client) is None
    assert not (builder.bin / "fake-client").exists()

    monkeypatch.setenv("HANG", "")
    monkeypatch.undo()
    monkeypatch.setenv("PATH", f"{workshop.folder / 'tools'}{os.pathsep}/usr/bin:/bin")
    monkeypatch.setenv("BUILDS", str(workshop.folder / "builds"))
    builder.build(workshop.programs)
    assert workshop.builds == [SERVER, CLIENT, "hanging", CLIENT]
    assert builder.built(client)


def test_a_killed_builder_frees_the_lock_and_takes_go_along(workshop):
    """SIGKILL half-way: the next builder must neither wait nor meet a Go that still writes."""
    script = textwrap.dedent("""
        import json, sys
        from pathlib import Path
        from equipoise_cluster.builder import Builder
        from equipoise_cluster.programs import Module, Program
        module = Module("fake", "example.com/fake", fits=2, folder=Path(sys.argv[2]))
        programs = [Program(name, module, f"example.com/{name}") for name in ("fake-server", "fake-client")]
        Builder(Path(sys.argv[1])).build(programs)
    """)
    arguments = [sys.executable, "-c", script, str(workshop.cache), str(workshop.folder / "module")]
    killed = subprocess.Popen(arguments, env=os.environ | {"HANG": CLIENT})
    until(lambda: workshop.builds[-1:] == ["hanging"])
    children = _children(killed.pid)
    assert children
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    until(lambda: not any(_runs(pid) for pid in children))

    builder = Builder(workshop.cache, workshop.progress)
    builder.build(workshop.programs)
    assert workshop.builds == [SERVER, CLIENT, "hanging", CLIENT]
    assert not any("waiting" in text for text in workshop.progress.updates)


def test_two_builders_build_one_after_the_other_and_nothing_twice(workshop):
    builders = [Builder(workshop.cache) for _ in range(2)]
    threads = [threading.Thread(target=each.build, args=(workshop.programs,)) for each in builders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert workshop.builds == [SERVER, CLIENT]


def test_a_changed_recipe_is_built_anew(workshop):
    builder = Builder(workshop.cache)
    builder.build(workshop.programs)
    (workshop.folder / "module" / "go.sum").write_text("example.com/lib v1.0.1 h1:x\n")
    changed = [replace(program) for program in workshop.programs]
    assert builder.built(changed[0]) is None
    builder.build(changed[:1])
    assert workshop.builds == [SERVER, CLIENT, SERVER]


def test_a_failed_build_shows_what_the_compiler_said_and_builds_nothing(workshop, monkeypatch):
    monkeypatch.setenv("BREAK", SERVER)
    builder = Builder(workshop.cache)
    with pytest.raises(ClusterError, match=r"go build of fake-server failed(.|\n)*undefined: x"):
        builder.build(workshop.programs)
    assert builder.built(workshop.programs[0]) is None
    assert workshop.builds == [SERVER]


def test_modules_that_cannot_be_fetched_are_reported_in_the_words_of_go(workshop, monkeypatch):
    monkeypatch.setenv("OFFLINE", "1")
    with pytest.raises(ClusterError, match=r"cannot fetch the modules of fake-server(.|\n)*no route to host"):
        Builder(workshop.cache).build(workshop.programs)
    assert workshop.builds == []


def test_without_go_the_error_names_the_three_ways(workshop, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(ClusterError) as raised:
        Builder(workshop.cache).build(workshop.programs)
    text = str(raised.value)
    assert "Missing: fake-server, fake-client." in text
    assert "Go is not on PATH" in text
    assert "1. install Go 1.26 or later" in text
    assert "2. set KUBEBUILDER_ASSETS" in text
    assert "3. use a cluster you have: set KUBECONFIG" in text


def test_a_go_that_is_too_old_is_named_unless_it_fetches_a_newer_one(workshop, monkeypatch):
    monkeypatch.setenv("FAKE_VERSION", "go1.24.4")
    with pytest.raises(ClusterError, match=r"tools/go is 1\.24, and Go 1\.26 is needed"):
        Builder(workshop.cache).build(workshop.programs)
    monkeypatch.setenv("FAKE_TOOLCHAIN", "auto")
    Builder(workshop.cache).build(workshop.programs)


def test_a_cache_that_cannot_be_written_is_named(workshop):
    workshop.cache.write_text("a file where the folder should be")
    with pytest.raises(ClusterError, match="XDG_CACHE_HOME"):
        Builder(workshop.cache).build(workshop.programs)


@pytest.mark.skipif(shutil.which("go") is None, reason="Go is not on PATH")
def test_the_real_go_builds_a_program_with_its_version_inside(tmp_path):
    folder = tmp_path / "module"
    folder.mkdir()
    (folder / "go.mod").write_text(
        "module example.com/hello\n\ngo 1.21\n\n// require example.com/hello v2.3.4\n"
    )
    (folder / "go.sum").write_text("")
    (folder / "hello.go").write_text(
        "package main\n\nvar version string\n\nfunc main() { println(version) }\n"
    )
    module = _Fixed("hello", "example.com/hello", 2, folder, (("main.version", "v{version}"),))
    builder = Builder(tmp_path / "cache")
    builder.build([Program("hello", module, "example.com/hello")])
    done = subprocess.run([builder.bin / "hello"], capture_output=True, text=True, check=True)
    assert done.stderr == "v2.3.4\n"


class _Fixed(Module):
    """A module that is itself what is built, so that no requirement states its version."""

    version = "2.3.4"


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
