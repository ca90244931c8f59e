"""Both images are built from this tree without a registry, and what is in them runs: as their user, without a shell."""

import os
import shutil
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

import pytest
from benchmarks.sidecar import Account, configuration

from equipoise_cluster import ConsoleProgress
from equipoise_cluster.images import Images
from equipoise_cluster.ports import choose

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.images,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="buildah's chroot isolation and debootstrap need root"),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Images:
    """Of a copy: whoever edits the tree meanwhile makes no other image of it."""
    tree = tmp_path_factory.mktemp("images") / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache"))
    return Images(tree, progress=ConsoleProgress())


@pytest.fixture(scope="module", params=["operator", "sidecar"])
def part(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def image(images, part) -> str:
    return images.build(part)


@pytest.fixture
def container(images, image):
    with images.container(image) as container:
        for shell in ("sh", "dash", "bash"):
            (container.rootfs / "usr/bin" / shell).unlink(missing_ok=True)
        yield container


@pytest.fixture
def program(images, image) -> str:
    (program,) = images.configuration(image)["Entrypoint"]
    return program


def test_the_same_tree_gives_the_same_image(images, part, image):
    made = images.configuration(image)["Hostname"]
    assert images.build(part) == image
    assert images.configuration(image)["Hostname"] == made, "it was built again"


def test_it_says_what_it_is_and_runs_as_nobody(images, part, image):
    configuration = images.configuration(image)
    assert configuration["User"] == "65532:65532"
    labels = configuration["Labels"]
    assert labels["org.opencontainers.image.title"] == f"equipoise-{part}"
    assert labels["org.opencontainers.image.version"] == version("equipoise")
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_it_holds_this_tree_and_its_parts_requirements_and_no_installer(images, part, container, program):
    assert images.run(container, program, "--version").strip() == version("equipoise")
    assert "Usage: equipoise" in images.run(container, program, part, "--help")
    (packages,) = container.rootfs.glob("opt/equipoise/lib/python3*/site-packages")
    installed = {path.name for path in packages.iterdir()}
    assert ("kopf" in installed) == (part == "operator")
    assert ("httptools" in installed) == (part == "sidecar")
    assert "pip" not in installed


def answer(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


@pytest.mark.parametrize("part", ["sidecar"], indirect=True, scope="module")
def test_the_sidecar_starts_in_its_image_and_answers_its_probes(images, container, program, tmp_path):
    (tmp_path / "config.json").write_bytes(configuration([Account("team/one")]).canonical())
    tmp_path.chmod(0o755)
    data, health = choose(2)
    process = images.start(
        container,
        *(program, "sidecar", "run"),
        *("--engine", f"http://127.0.0.1:{choose(1)[0]}", "--host", "127.0.0.1"),
        *("--data-port", str(data), "--health-port", str(health), "--config-file", "/etc/given/config.json"),
        log=tmp_path / "log",
        volumes={tmp_path: "/etc/given"},
    )
    try:
        until = time.monotonic() + 120
        while (found := answer(f"http://127.0.0.1:{health}/healthz"))[0] != 200:
            process.check()
            assert time.monotonic() < until, process.tail()
            time.sleep(0.2)
        assert found == (200, "ok\n")
        status, why = answer(f"http://127.0.0.1:{health}/readyz")
        assert status == 503
        assert "engine" in why
        assert answer(f"http://127.0.0.1:{data}/v1/models")[0] == 401
    finally:
        process.stop()
    assert answer(f"http://127.0.0.1:{health}/healthz")[0] == 0, "it ends with its container"


@pytest.mark.parametrize("part", ["operator"], indirect=True, scope="module")
def test_the_operator_starts_in_its_image_and_says_what_it_lacks(images, container, program, tmp_path):
    process = images.start(container, program, "operator", "run", log=tmp_path / "log", volumes={})
    try:
        assert process.wait(120) not in {None, 0}
    finally:
        process.stop()
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said
    assert "cluster" in said or "KUBECONFIG" in said
