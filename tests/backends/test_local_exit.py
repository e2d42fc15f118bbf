"""A process that ends while a local model, which nobody closed, is still working."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from backends import SamplingParams
from backends.local import LocalBackend, shutdown

PROLOGUE = """
import asyncio, os, sys, threading, time
import torch
import backends
from backends.local.model import Model

torch.set_num_threads(2)
backend = backends.load("tiny/qwen3-small")
forward = Model._forward
working = threading.Event()

def seen(self, **inputs):
    working.set()
    return forward(self, **inputs)

Model._forward = seen

async def leave_it_working():
    start = await backend.begin("Ada has 4 boxes", max_tokens=900, params=backends.SamplingParams(temperature=3.0))
    call = asyncio.create_task(backend.rollout([start], 32, seed=0))
    await asyncio.to_thread(working.wait)
    call.cancel()
"""


def ending(program: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + program],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )


def test_a_process_that_ends_within_a_pass_through_the_model_ends_well() -> None:
    done = ending("""
layer = torch.nn.Linear(1000, 1000)
batch = torch.ones(1000, 1000)

def endless(self, **inputs):
    working.set()
    while True:
        layer(batch)

Model._forward = endless
asyncio.run(leave_it_working())
print("over")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


def test_an_operation_without_end_does_not_keep_the_process() -> None:
    done = ending("""
def stuck(self, **inputs):
    working.set()
    threading.Event().wait()

Model._forward = stuck
asyncio.run(leave_it_working())
print("over")
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "over\n", "")


def test_a_forked_process_ends_although_the_thread_is_its_parents() -> None:
    done = ending("""
asyncio.run(leave_it_working())
held, free = threading.Event(), threading.Event()

def hold():  # As the model's thread may do just then; nobody gives the lock back in the child.
    with backend._engine._changed:
        held.set()
        free.wait()

threading.Thread(target=hold).start()
held.wait()
child = os.fork()
if child:
    free.set()
    print("child", os.waitpid(child, 0)[1])
""")
    assert (done.returncode, done.stdout, done.stderr) == (0, "child 0\n", "")


async def test_threads_that_have_ended_are_forgotten(tiny: LocalBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.local.engine._IDLE_SECONDS", 60)
    start = await tiny.begin("Ada has 4 boxes", max_tokens=4, params=SamplingParams())
    await tiny.extend(start, 1, tokens=2, seed=0)
    assert tiny._engine._stop in shutdown._working.values()
    await tiny.aclose()
    assert tiny._engine._stop not in shutdown._working.values()
