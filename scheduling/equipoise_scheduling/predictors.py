"""The one table of predictors."""

from typing import assert_never

from equipoise_scheduling.mixture import Mixture
from equipoise_scheduling.prediction import MovingAverage, NoPrediction, PredictionSettings, Predictor


def predictor_for(settings: PredictionSettings) -> Predictor:
    """Build the predictor that the settings name."""
    match settings.kind:
        case "None":
            return NoPrediction()
        case "MovingAverage":
            return MovingAverage(settings.prior_tokens)
        case "Mixture":
            return Mixture(settings.prior_tokens)
        case unknown:
            assert_never(unknown)
