"""Steps in the cache are resumable: done once, redone after an interruption or a changed recipe."""

import pytest
from filelock import FileLock, Timeout

from equipoise_cluster.environments import Workshop
from equipoise_cluster.progress import Silent


class Recorder(Silent):
    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)


def test_a_finished_step_is_not_done_again(tmp_path):
    made = []
    for _ in range(2):
        with Workshop(tmp_path, Silent()) as workshop:
            workshop.step("model", "making it", b"recipe", lambda: made.append(1))
    assert made == [1]


def test_an_interrupted_step_is_done_again_and_told_both_times(tmp_path):
    recorder, made = Recorder(), []

    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Workshop(tmp_path, recorder) as workshop:
        workshop.step("model", "making it", b"recipe", interrupted)
    with Workshop(tmp_path, recorder) as workshop:
        workshop.step("model", "making it", b"recipe", lambda: made.append(1))
    assert made == [1]
    assert recorder.steps == ["making it", "making it"]


def test_a_changed_recipe_makes_its_step_anew_even_if_that_fails_the_first_time(tmp_path):
    made = []

    def fails() -> None:
        raise RuntimeError

    with Workshop(tmp_path, Silent()) as workshop:
        workshop.step("model", "making it", b"old", lambda: made.append("old"))
    with pytest.raises(RuntimeError), Workshop(tmp_path, Silent()) as workshop:
        workshop.step("model", "making it", b"new", fails)
    # The half-made new one must not pass for the old one.
    with Workshop(tmp_path, Silent()) as workshop:
        workshop.step("model", "making it", b"old", lambda: made.append("old again"))
    assert made == ["old", "old again"]


def test_only_one_at_a_time_works_on_a_folder(tmp_path):
    with Workshop(tmp_path, Silent()), pytest.raises(Timeout):
        FileLock(tmp_path / "lock").acquire(timeout=0)
    FileLock(tmp_path / "lock").acquire(timeout=0).lock.release()
