"""A folder named `operator` at the root must never hide the standard library's module of that name."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_no_folder_named_operator_is_a_package():
    skipped = {".venv", ".git", "node_modules"}
    found = [
        path
        for path in ROOT.glob("**/operator/__init__.py")
        if not skipped & set(path.relative_to(ROOT).parts)
    ]
    assert found == []


def test_from_the_root_the_standard_library_is_imported():
    program = "import operator; print(operator.__file__ or 'built in')"
    out = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert str(ROOT / "operator") not in out
    assert out.strip().endswith("operator.py")


def test_pytest_has_not_put_a_folder_named_operator_in_its_place():
    import operator

    assert operator.itemgetter(0)("ab") == "a"
