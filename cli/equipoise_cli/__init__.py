"""The command line: `equipoise`, which finds the part that a subcommand belongs to."""
