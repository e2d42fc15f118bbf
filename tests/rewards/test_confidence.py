from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from backends import CapabilityError, Completion, Confidence, SamplingParams
from backends.scripted import ScriptedBackend
from ets_agent import ETS
from rewards import RewardError, build

QUESTION = "Leo has 9 eggs. Leo finds 12 more. How many eggs does Leo have?"
NAMES = ["logprob", "entropy", "self_certainty"]


def _expected(model: Any, prompt: list[int], response: list[int]) -> dict[str, float]:
    """Compute all three means from one plain forward pass in double precision."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    p = logits.softmax(-1)
    size = p.shape[-1]
    return {
        "logprob": float(p.log().gather(1, torch.tensor(response)[:, None]).mean()),
        "entropy": float((p * p.log()).sum(-1).mean()),
        "self_certainty": float(-(size * p).log().mean()),
    }


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(confidence=True),
        SamplingParams(confidence=True, temperature=0.6, top_k=20),
        SamplingParams(confidence=True, temperature=0),
    ],
    ids=["plain", "truncated", "greedy"],
)
async def test_they_are_means_over_the_whole_response_whatever_was_sampled_from(
    tiny: Any, tiny_parts: tuple[Any, Any], params: SamplingParams
) -> None:
    model, tokenizer = tiny_parts
    start = await tiny.begin(QUESTION, max_tokens=40, params=params)
    prompt = tokenizer(QUESTION)["input_ids"]
    states = await tiny.extend(start, 3, tokens=7, seed=1)
    later = [(await tiny.extend(state, 1, tokens=5, seed=2))[0] for state in states]
    rollouts = await tiny.rollout(later, 2, seed=3)
    for state, group in zip(later, rollouts, strict=True):
        for completion in group:
            expected = _expected(model, prompt, [*state.token_ids, *completion.token_ids])
            for name in NAMES:
                assert await build(name).score(QUESTION, [completion]) == [pytest.approx(expected[name], abs=1e-4)]


async def test_a_finished_state_tells_its_own(tiny: Any) -> None:
    start = await tiny.begin(QUESTION, max_tokens=6, params=SamplingParams(confidence=True))
    (state,) = await tiny.extend(start, 1, tokens=6, seed=0)
    (group,) = await tiny.rollout([state], 1, seed=0)
    assert state.finished
    assert state.confidence == group[0].confidence
    assert state.confidence.num_tokens == 6


async def test_nothing_is_told_unasked(tiny: Any) -> None:
    start = await tiny.begin(QUESTION, max_tokens=6, params=SamplingParams())
    (state,) = await tiny.extend(start, 1, tokens=3, seed=0)
    (group,) = await tiny.rollout([state], 1, seed=0)
    assert (start.confidence, state.confidence, group[0].confidence) == (None, None, None)


async def test_asking_changes_nothing_that_is_drawn(tiny: Any) -> None:
    drawn = []
    for asked in (False, True):
        start = await tiny.begin(QUESTION, max_tokens=30, params=SamplingParams(confidence=asked))
        drawn.append([c.token_ids for c in (await tiny.rollout([start], 4, seed=5))[0]])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("name", NAMES)
async def test_a_run_is_guided_by_it(tiny: Any, name: str) -> None:
    ets = ETS(tiny, name, num_candidates=4, num_rollouts=2, num_steps=3, max_tokens=24, kl_coef=0.0)
    result = await ets.complete(QUESTION, seed=0)
    assert result.warnings == []
    rewards = [rollout.reward for step in result.steps for group in step.rollouts for rollout in group]
    assert None not in rewards
    assert len(set(rewards)) > 3
    assert result.reward == max(rollout.reward for group in result.steps[-1].rollouts for rollout in group)


@pytest.mark.parametrize("name", NAMES)
def test_a_backend_that_cannot_tell_is_refused_before_anything_is_drawn(name: str) -> None:
    with pytest.raises(CapabilityError, match=f"reward '{name}' needs (confidence|entropy), which .* cannot give"):
        ETS(ScriptedBackend(["a b"]), name)


async def test_the_same_for_a_reward_of_one_call() -> None:
    async with ETS(ScriptedBackend(["a b"])) as ets:
        with pytest.raises(CapabilityError, match="reward 'logprob' needs confidence"):
            await ets.complete("q", reward="logprob")


def test_rollouts_of_a_proposal_are_refused(tiny: Any) -> None:
    with pytest.raises(CapabilityError, match=r"reward 'entropy' judges by .*leave the proposal out"):
        ETS(tiny, "entropy", tiny)


async def test_a_completion_that_does_not_tell_is_an_error() -> None:
    with pytest.raises(RewardError, match=r"'logprob' needs completions that tell their confidence"):
        await build("logprob").score("q", [Completion(text="a")])
    known = Completion(text="a", confidence=Confidence(num_tokens=2, logprob=-3.0, entropy=None))
    assert await build("logprob").score("q", [known]) == [-1.5]
    with pytest.raises(RewardError, match="'entropy' needs completions"):
        await build("entropy").score("q", [known])


async def test_one_text_of_other_tokens_has_its_own_confidence() -> None:
    group = [Completion(text="a", confidence=Confidence(num_tokens=n, logprob=-2.0)) for n in (1, 2, 0)]
    assert await build("logprob").session().score("q", group) == [-2.0, -1.0, None]


def test_confidences_add_up() -> None:
    one = Confidence(num_tokens=1, logprob=-1.0, entropy=0.5, self_certainty=2.0)
    assert one + one == Confidence(num_tokens=2, logprob=-2.0, entropy=1.0, self_certainty=4.0)
    assert (one + Confidence(entropy=None)).entropy is None


def test_impossible_tokens_are_not_of_the_vocabulary() -> None:
    from backends.local.sampling import confidences

    row = torch.tensor([[0.2, 0.8, 0.0]]).log()
    (confidence,) = confidences(row, torch.tensor([0]))
    assert confidence.logprob == pytest.approx(math.log(0.2))
    assert confidence.entropy == pytest.approx(-0.2 * math.log(0.2) - 0.8 * math.log(0.8))
    assert confidence.self_certainty == pytest.approx(-math.log(2) - (math.log(0.2) + math.log(0.8)) / 2)
