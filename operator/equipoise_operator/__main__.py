"""`python -m equipoise_operator` does what `equipoise operator run` does."""

from equipoise_operator.cli import run

run()
