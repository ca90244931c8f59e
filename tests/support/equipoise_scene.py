"""An Equipoise scheduler whose requests cost their prompt alone, and short ways to send, serve and end them."""

from scheduling_harness import drain, make_request

from equipoise_scheduling.cost import LinearCost
from equipoise_scheduling.prediction import PredictionSettings
from equipoise_scheduling.request import Outcome, Usage
from equipoise_scheduling.schedulers.equipoise import Equipoise, EquipoiseSettings

PROMPTS = LinearCost(input=1, output=0)
NO_PREDICTION = PredictionSettings(kind="None")


def equipoise(*, tenants=None, **settings):
    settings = {"band": 1000, "cost": PROMPTS, "prediction": NO_PREDICTION} | settings
    return Equipoise(EquipoiseSettings(**settings), tenants or {})


def send(scheduler, name, tenant, *, now=0.0, prompt=100, **fields):
    request = make_request(name, tenant, arrival=now, prompt=prompt, **fields)
    assert scheduler.enqueue(request, now) is None
    return request


def served(scheduler, now=0.0, most=10_000):
    return [request.id for request in drain(scheduler, now, most)]


def deliver(scheduler, request, now=0.0):
    scheduler.progress(request, request.prompt_tokens, 0, now)
    scheduler.settle(request, Usage(request.prompt_tokens, 0), Outcome.FINISHED, now)
