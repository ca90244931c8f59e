"""What a replay says of how far it is."""

import io

from rich.console import Console

from equipoise_cluster import ConsoleProgress
from equipoise_demo.follow import following
from equipoise_demo.replay import Following


def lines(*states, seconds=20.0):
    console = Console(file=io.StringIO(), width=200)
    with following("Replay", seconds, console, ConsoleProgress(console, every=0.0)) as follow:
        for state in states:
            follow(state)
    return console.file.getvalue().splitlines()


def test_it_says_how_much_of_the_traffic_was_sent_and_then_that_all_was():
    said = lines(
        Following(seconds=5.0, sent=12, ended=4, failed=0, total=30),
        Following(seconds=29.0, sent=30, ended=28, failed=1, total=30),
    )
    assert said == [
        "Replay …",
        "Replay: 4 of 30 requests ended, 5 of 20 s sent, 8 under way",
        "Replay: 28 of 30 requests ended, all sent, 2 under way, 1 failed",
    ]
