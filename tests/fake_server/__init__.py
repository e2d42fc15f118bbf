"""A fake OpenAI-compatible server on loopback, for tests and benchmarks: real HTTP, scripted answers, exact numbers.

with FakeServer(ScriptedModel(["a b", "a c"])) as server:
    ...  # server.base_url, server.records
"""

from tests.fake_server.models import Drawn, Entry, Model, Sampling, Step
from tests.fake_server.profiles import ProfileName
from tests.fake_server.records import Record, Records
from tests.fake_server.scripted import ScriptedModel
from tests.fake_server.server import FakeServer

__all__ = [
    "Drawn",
    "Entry",
    "FakeServer",
    "Model",
    "ProfileName",
    "Record",
    "Records",
    "Sampling",
    "ScriptedModel",
    "Step",
]
