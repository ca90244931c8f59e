"""`equipoise crds`: write the generated CustomResourceDefinitions, or say that the committed ones are stale."""

from __future__ import annotations

from pathlib import Path

import yaml

from equipoise_api.crd import fairness_policy_crd, tenant_crd
from equipoise_api.names import GROUP

HEADER = "# Generated from crds/equipoise_api by `equipoise crds`; edit the types instead.\n"


def rendered() -> dict[str, str]:
    """Return the text of each CRD file by its name."""
    return {
        f"{GROUP}_{crd['spec']['names']['plural']}.yaml": HEADER
        + yaml.safe_dump(crd, sort_keys=False, width=110, allow_unicode=True)
        for crd in (tenant_crd(), fairness_policy_crd())
    }


def write(directories: list[Path]) -> list[Path]:
    """Write every file into every directory; return those that changed."""
    changed = []
    for path, text in _targets(directories):
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            changed.append(path)
    return changed


def stale(directories: list[Path]) -> list[Path]:
    """Return the files that are missing or differ from the types."""
    return [path for path, text in _targets(directories) if not path.exists() or path.read_text() != text]


def _targets(directories: list[Path]) -> list[tuple[Path, str]]:
    return [(directory / name, text) for directory in directories for name, text in rendered().items()]
