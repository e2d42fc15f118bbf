"""Every backend of the package is put through the same laws."""

from __future__ import annotations

from typing import Any

import pytest

from backends import Backend, Prompt
from backends.enumerable import EnumerableBackend
from backends.scripted import ScriptedBackend

from .conformance import CHECKS, Check

SCRIPT = {
    "the answer is 4 #### 4": 3.0,
    "the answer is 5 #### 5": 2.0,
    "I think it is 4": 1.0,
    "no": 1.0,
    "a very long answer that goes on and on until the budget is used up and then some": 2.0,
}
QUESTION = "Will has 41 tickets. Ada gives Will another 72. How many tickets does Will have now?"


@pytest.fixture(params=["scripted", "enumerable", "enumerable diffusion", "local", "local chat"])
def subject(request: pytest.FixtureRequest) -> tuple[Backend, Prompt]:
    if request.param == "scripted":
        return ScriptedBackend(SCRIPT), "a question"
    if request.param.startswith("enumerable"):
        return EnumerableBackend.random(1, letters="abcd", diffusion=request.param.endswith("diffusion")), "a question"
    tiny: Any = request.getfixturevalue("tiny")
    return tiny, QUESTION if request.param == "local" else [{"role": "user", "content": QUESTION}]


@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_backend_obeys(law: Check, subject: tuple[Backend, Prompt]) -> None:
    await law(*subject)
