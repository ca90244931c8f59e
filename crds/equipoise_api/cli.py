"""`equipoise crds`: write what is generated from the types, or say that the committed files are stale."""

from __future__ import annotations

from pathlib import Path

import yaml

from equipoise_api.crd import fairness_policy_crd, tenant_crd
from equipoise_api.names import GROUP
from equipoise_api.reference import markdown

CRD_DIRECTORIES = [Path("crds"), Path("charts/equipoise/files/crds")]
REFERENCE = Path("docs/api.md")

_HEADER = "# Generated from crds/equipoise_api by `equipoise crds`; edit the types instead.\n"


def write(root: Path) -> list[Path]:
    """Write every generated file of the checkout at `root`; return those that changed."""
    changed = stale(root)
    for path in changed:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_generated(root)[path])
    return changed


def stale(root: Path) -> list[Path]:
    """Return the generated files that are missing or differ from the types."""
    return [path for path, text in _generated(root).items() if not path.exists() or path.read_text() != text]


def _generated(root: Path) -> dict[Path, str]:
    """Return the text of each generated file by its path."""
    files = {root / REFERENCE: markdown()}
    for crd in (tenant_crd(), fairness_policy_crd()):
        text = _HEADER + yaml.safe_dump(crd, sort_keys=False, width=110, allow_unicode=True)
        name = f"{GROUP}_{crd['spec']['names']['plural']}.yaml"
        files |= {root / directory / name: text for directory in CRD_DIRECTORIES}
    return files
