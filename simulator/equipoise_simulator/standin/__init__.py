"""The stand-in engine: an OpenAI-compatible server with vLLM's shapes, driven by the engine model in real time."""

from equipoise_simulator.standin.app import Settings
from equipoise_simulator.standin.dcgm import DcgmPlace
from equipoise_simulator.standin.faults import Faults
from equipoise_simulator.standin.server import StandIn
from equipoise_simulator.standin.text import answer, count_tokens

__all__ = ["DcgmPlace", "Faults", "Settings", "StandIn", "answer", "count_tokens"]
