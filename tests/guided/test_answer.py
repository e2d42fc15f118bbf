"""What an answer says of a run; above all, how its confidence comes about."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest

import rewards
from backends import Completion, Prompt
from backends.scripted import ScriptedBackend
from ets_agent import ETS, GuidedAnswer, GuidedReasoning, Result
from ets_agent.confidence import confidence
from rewards import Reward
from tests.traces.runs import result, rollout, step

SCRIPT = {"so it is\n#### 1": 4.0, "or it is\n#### 1": 1.0, "no it is\n#### 2": 3.0, "it is no number": 2.0}


class Vowels(Reward):
    """Rewards vowels, a little each, so that all weights differ; reads answers as others do."""

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [0.1 * sum(letter in "aeiou" for letter in completion.text) for completion in completions]

    def answer(self, completion: Completion) -> str | None:
        return rewards.extract_answer(completion.text)


def by_hand(run: Result, kl_coef: float) -> float:
    """Sum up what the texts and rewards of a trace say, with nothing else of it."""
    shares = []
    for trace in run.steps:
        energies, matching = [], []
        for rollouts in trace.rollouts:
            terms = [(each.text, math.exp((each.reward or 0.0) / kl_coef)) for each in rollouts]
            energies.append(sum(term for _, term in terms) / len(terms))
            wanted = (text.endswith("#### 1") if run.text.endswith("#### 1") else text == run.text for text, _ in terms)
            matching.append(sum(term for (_, term), hit in zip(terms, wanted, strict=True) if hit) / len(terms))
        shares.append(sum(matching) / sum(energies))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("num_steps", [1, 2])
@pytest.mark.parametrize("seed", range(4))
async def test_confidence_is_the_share_of_weight_behind_the_answer(num_steps: int, seed: int) -> None:
    ets = ETS(ScriptedBackend(SCRIPT), Vowels(), num_candidates=6, num_rollouts=3, kl_coef=0.3, max_tokens=6, seed=seed)
    run = await ets.complete("q", num_steps=num_steps)
    assert run.text.endswith(("#### 1", "#### 2", "no number"))
    if not run.text.endswith("#### 2"):
        assert confidence(run) == pytest.approx(by_hand(run, 0.3))
        assert 0 < by_hand(run, 0.3) < 1


async def test_confidence_is_1_where_there_is_one_answer() -> None:
    run = await ETS(ScriptedBackend(["#### 1", "a #### 1"]), seed=0, num_steps=1, max_tokens=4).complete("q")
    assert confidence(run) == 1.0


def made(answers: Sequence[str | None], shares: Sequence[float], answer: str | None, **fields: Any) -> Result:
    rollouts = tuple(
        (rollout(f"t{n}", answer=each, share=share),)
        for n, (each, share) in enumerate(zip(answers, shares, strict=True))
    )
    weights = [1 / len(answers)] * len(answers)
    return result("t0", [step(1, ["a"] * len(answers), weights, rollouts=rollouts)], answer=answer, **fields)


def test_how_an_answer_is_written_does_not_matter() -> None:
    run = made(["1/2", "0.5", "$\\frac{1}{2}$", "2"], [1.0] * 4, "0.50")
    assert confidence(run) == pytest.approx(0.75)


def test_without_an_answer_texts_are_compared() -> None:
    assert confidence(made([None, None, "t0", "t1"], [1.0] * 4, None)) == pytest.approx(0.25)


def test_a_response_without_an_answer_is_never_behind_one() -> None:
    assert confidence(made([None, "None"], [1.0, 1.0], "None")) == pytest.approx(0.5)


def test_confidence_is_averaged_over_the_steps_that_were_weighed() -> None:
    one = step(1, ["a"], [1.0], rollouts=((rollout("x #### 1", share=1.0),),))
    two = step(2, ["a"], [1.0], rollouts=((rollout("x #### 1", share=0.5), rollout("x #### 2", share=0.5)),))
    none = one.model_copy(update={"weights": (0.0,)})
    assert confidence(result("x #### 1", [one, two, none])) == pytest.approx(0.75)


def test_without_weights_there_is_no_confidence() -> None:
    assert confidence(result("x", [])) is None


def test_rounding_gives_no_more_than_1() -> None:
    assert confidence(made(["1"] * 3, [1.0 + 1e-9] * 3, "1")) == 1.0


def test_an_answer_says_what_its_run_says() -> None:
    run = result("t", [], finish_reason="timeout", warnings=["w"], reward=-math.inf)
    answer = GuidedAnswer.of(run, trace_id="id")
    assert (answer.text, answer.answer, answer.reward, answer.cut_short) == ("t", "1", -math.inf, True)
    assert (answer.usage, answer.seed, answer.model) == (run.usage, run.seed, run.model)
    assert (answer.trace_id, answer.warnings, answer.confidence) == ("id", ("w",), None)


def test_answers_survive_json() -> None:
    answer = GuidedAnswer.of(result("t", [], reward=-math.inf), trace_id="id")
    text = answer.model_dump_json()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert GuidedAnswer.model_validate_json(text) == answer


async def test_an_answer_on_the_embedded_model_is_sure_of_a_simple_sum() -> None:
    async with GuidedReasoning("tiny/qwen3") as reasoning:
        answer = await reasoning(
            "Ada has 4 boxes with 25 cards in each. Ada gives 30 to Leo. How many cards does Ada have now?",
            max_tokens=64,
            settings={"seed": 0},
        )
    assert answer.answer == "70"
    assert answer.confidence is not None
    assert answer.confidence > 0.5
