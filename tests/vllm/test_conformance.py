"""vLLM is put through the laws that every backend obeys."""

from __future__ import annotations

import pytest

from backends import Backend, Prompt
from tests.backends.conformance import CHECKS, Check

QUESTION = "Will has 41 tickets. Ada gives Will another 72. How many tickets does Will have now?"


@pytest.mark.parametrize("form", ["text", "chat"])
@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_plain_log_probabilities(law: Check, form: str, reference: Backend) -> None:
    prompt: Prompt = QUESTION if form == "text" else [{"role": "user", "content": QUESTION}]
    await law(reference, prompt)


@pytest.mark.parametrize("law", CHECKS, ids=lambda law: law.__name__)
async def test_log_probabilities_of_what_is_sampled(law: Check, small: Backend) -> None:
    await law(small, QUESTION)
