"""There is an example of each algorithm, with all of its parameters, which the API's types and a sidecar accept."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from equipoise_api.policy import Algorithm, AlgorithmType, FairnessPolicy
from equipoise_api.sidecar_config import SidecarConfig
from equipoise_scheduling.registry import SCHEDULERS
from equipoise_sidecar.dispatcher import Dispatcher
from equipoise_sidecar.policy import compile_policy

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "manifests" / "algorithms").glob("*.yaml"))
each_example = pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)


def document(path):
    return yaml.safe_load(path.read_text())


def test_there_is_one_of_each():
    kinds = [document(path)["spec"]["algorithm"]["type"] for path in EXAMPLES]
    assert sorted(kinds) == sorted(get_args(AlgorithmType)) == sorted(SCHEDULERS)


@each_example
def test_the_api_accepts_it(path):
    policy = FairnessPolicy.strictly(document(path))
    assert policy.metadata.name == path.stem
    assert f"docs/schedulers/{path.stem}.md" in path.read_text()
    assert (ROOT / "docs" / "schedulers" / f"{path.stem}.md").exists()


@each_example
def test_it_shows_all_parameters_of_its_algorithm_and_of_no_other(path):
    given = dict(document(path)["spec"]["algorithm"])
    algorithm = Algorithm.strictly(given)
    kind = given.pop("type")
    members = {field.alias: name for name, field in Algorithm.model_fields.items()}
    own = [alias for alias in members if alias.lower() == kind.lower()]
    assert [*given] == own
    for alias in own:
        parameters = type(getattr(algorithm, members[alias])).model_fields
        assert given[alias].keys() == {field.alias for field in parameters.values()}


@each_example
def test_a_sidecar_schedules_by_it(path):
    spec = FairnessPolicy.strictly(document(path)).spec
    config = SidecarConfig(mode="Enforce", algorithm=spec.algorithm, overload=spec.overload, gpu=spec.gpu)
    dispatcher = Dispatcher(clock=lambda: 0.0)
    dispatcher.apply(compile_policy(config, config.revision))
    assert type(dispatcher.scheduler) is SCHEDULERS[spec.algorithm.type]
