"""`python -m equipoise_sidecar`: the sidecar alone, configured by its environment."""

import sys

from equipoise_sidecar.cli import run

sys.exit(run())
