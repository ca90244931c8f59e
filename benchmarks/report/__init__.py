"""The report: every scheduler against the papers' claims, in the simulator, every table of it made in one run."""
