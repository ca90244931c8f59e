"""The command `equipoise`: one door to every part; each subcommand imports its part only when it is called."""
