"""A fake OpenAI-compatible server on loopback, for tests and benchmarks: real HTTP, scripted answers, exact numbers.

    with FakeServer(ScriptedModel(["a b", "a c"])) as server:
        ...  # server.base_url, server.records

`FakeProcess` is the same as a process of its own, which can be killed. `tests.fake_server.local` serves local models
and is imported only where one is wanted, because it needs torch.
"""

from tests.fake_server.faults import KINDS, Asked, Fault, FaultPlan, Kind
from tests.fake_server.models import Drawn, Entry, Model, Sampling, Step
from tests.fake_server.ports import kept_port
from tests.fake_server.process import FakeProcess
from tests.fake_server.profiles import ProfileName
from tests.fake_server.records import Record, Records
from tests.fake_server.scripted import ScriptedModel
from tests.fake_server.server import FakeServer

__all__ = [
    "KINDS",
    "Asked",
    "Drawn",
    "Entry",
    "FakeProcess",
    "FakeServer",
    "Fault",
    "FaultPlan",
    "Kind",
    "Model",
    "ProfileName",
    "Record",
    "Records",
    "Sampling",
    "ScriptedModel",
    "Step",
    "kept_port",
]
