"""The laws that every backend obeys, written once. Each check takes a fresh backend and a prompt it understands."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from backends import (
    Backend,
    BackendClosedError,
    BackendError,
    CapabilityError,
    Completion,
    Prompt,
    PromptError,
    SamplingParams,
    State,
)

Check = Callable[[Backend, Prompt], Awaitable[None]]

PLAIN = SamplingParams()
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    CHECKS.append(function)
    return function


@check
async def states_are_values(backend: Backend, prompt: Prompt) -> None:
    start = await backend.begin(prompt, max_tokens=8, params=PLAIN)
    twin = await backend.begin(prompt, max_tokens=8, params=PLAIN)
    assert start == twin
    assert hash(start) == hash(twin)
    assert (start.text, start.num_tokens, start.finished) == ("", 0, False)
    first = await backend.extend(start, 2, tokens=2, seed=1)
    assert start == twin, "extending must not change the state"
    await backend.rollout(first, 1, seed=2)
    assert await backend.extend(start, 2, tokens=2, seed=1) == first
    assert await backend.extend(twin, 2, tokens=2, seed=1) == first
    with pytest.raises(dataclasses.FrozenInstanceError):
        start.text = "changed"  # type: ignore[misc]


@check
async def budgets_are_respected(backend: Backend, prompt: Prompt) -> None:
    state = await backend.begin(prompt, max_tokens=7, params=PLAIN)
    for round_ in range(4):
        successors = await backend.extend(state, 6, tokens=3, seed=round_)
        for new in successors:
            assert new.num_tokens <= min(state.num_tokens + 3, 7)
            assert new.finished or new.num_tokens == state.num_tokens + 3
            assert new.finish_reason != "length" or new.num_tokens == 7
            assert new.text.startswith(state.text)
        groups = await backend.rollout(successors, 3, seed=round_)
        for new, completions in zip(successors, groups, strict=True):
            assert len(completions) == 3
            for completion in completions:
                total = new.num_tokens + completion.num_tokens
                assert not completion.token_ids or completion.num_tokens == len(completion.token_ids)
                assert total <= 7
                assert completion.finish_reason in ("stop", "length")
                assert completion.finish_reason != "length" or total == 7
                assert completion.text.startswith(new.text)
        state = next((new for new in successors if not new.finished), successors[0])


@check
async def finished_states_stay_as_they_are(backend: Backend, prompt: Prompt) -> None:
    state = await backend.begin(prompt, max_tokens=1, params=PLAIN)
    (final,) = await backend.extend(state, 1, tokens=1, seed=0)
    assert final.finished
    assert await backend.extend(final, 3, tokens=5, seed=1) == [final] * 3
    ((first, second),) = await backend.rollout([final], 2, seed=1)
    assert first == second == Completion(text=final.text, logprob=0.0, finish_reason=final.finish_reason or "stop")


@check
async def log_probabilities_agree_with_score(backend: Backend, prompt: Prompt) -> None:
    if not (backend.capabilities.logprobs and backend.capabilities.score):
        pytest.skip("no log-probabilities")
    for params in (
        PLAIN,
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=1.5),
        SamplingParams(top_p=0.8),
        SamplingParams(temperature=1.3, top_k=3),
        SamplingParams(temperature=0.0),
    ):
        start = await backend.begin(prompt, max_tokens=10, params=params)
        middle = [state for state in await backend.extend(start, 3, tokens=4, seed=5) if not state.finished]
        states = [start, *middle]
        drawn = await backend.rollout(states, 3, seed=6)
        if not (params.plain or backend.capabilities.tempered_logprobs):
            assert {completion.logprob for group in drawn for completion in group} == {None}, "better than wrong"
        if params.greedy:
            assert {completion.logprob for group in drawn for completion in group} <= {None, 0.0}
        if not (params.plain or backend.capabilities.tempered_score):
            with pytest.raises(CapabilityError, match="temperature 1"):
                await backend.score(states, drawn)
            continue
        for completions, scores in zip(drawn, await backend.score(states, drawn), strict=True):
            for completion, score in zip(completions, scores, strict=True):
                assert completion.logprob is not None
                assert completion.logprob <= 1e-6
                assert math.isclose(completion.logprob, score, rel_tol=1e-4, abs_tol=1e-3), params


@check
async def states_of_a_twin_can_be_adopted(backend: Backend, prompt: Prompt) -> None:
    if backend.tokenization is None:
        pytest.skip("no tokens that others share")
    assert backend.tokenization.difference(backend.tokenization) is None
    params = SamplingParams(temperature=1.5 if backend.capabilities.tempered_score else 1.0)
    start = await backend.begin(prompt, max_tokens=10, params=params)
    twin = await backend.begin(prompt, max_tokens=10, params=params)
    drawn = await backend.extend(start, 6, tokens=4, seed=1)
    adopted = backend.adopt(twin, drawn)
    assert adopted == drawn
    further = await backend.extend(next(state for state in drawn if not state.finished), 4, tokens=3, seed=2)
    again = backend.adopt(next(state for state in adopted if not state.finished), further)
    assert again == further
    states, twins = [*drawn, *further, start], [*adopted, *again, *backend.adopt(twin, [start])]
    expected = await backend.rollout(states, 2, seed=3)
    rolled = await backend.rollout(twins, 2, seed=3)
    assert [[c.token_ids for c in group] for group in rolled] == [[c.token_ids for c in group] for group in expected]
    scores = await backend.score(twins, rolled)
    for line, group in zip(scores, expected, strict=True):
        assert line == pytest.approx([completion.logprob for completion in group], abs=1e-3)
    alien = dataclasses.replace(start, token_ids=(10**9,), num_tokens=1)
    with pytest.raises(BackendError):
        backend.adopt(further[0], [start])
    with pytest.raises(BackendError):
        await backend.rollout(backend.adopt(twin, [alien]), 1, seed=0)
    outside = dataclasses.replace(expected[-1][0], token_ids=(10**9,) * len(expected[-1][0].token_ids))
    assert await backend.score([start], [[outside]]) == [[-math.inf]]


@check
async def seeds_reproduce_row_by_row(backend: Backend, prompt: Prompt) -> None:
    if not backend.capabilities.seed:
        pytest.skip("no seeds")
    start = await backend.begin(prompt, max_tokens=10, params=SamplingParams(temperature=1.5))
    few = await backend.extend(start, 2, tokens=5, seed=3)
    many = await backend.extend(start, 9, tokens=5, seed=3)
    assert many[:2] == few, "a row must not depend on how many are drawn with it"
    one = await backend.rollout([start], 2, seed=4)
    more = await backend.rollout([start, *[state for state in many if not state.finished]], 5, seed=4)
    assert [completion.token_ids for completion in more[0][:2]] == [completion.token_ids for completion in one[0]]
    texts = {(await backend.rollout([start], 1, seed=seed))[0][0].text for seed in range(30)}
    assert len(texts) > 1, "different seeds must give different draws"


@check
async def stop_strings_end_a_sequence(backend: Backend, prompt: Prompt) -> None:
    start = await backend.begin(prompt, max_tokens=12, params=PLAIN)
    (found,) = await backend.rollout([start], 8, seed=7)
    longest = max(found, key=lambda completion: len(completion.text)).text
    assert len(longest) >= 3, "the prompt of this check must draw some text"
    stop = longest[1:3]
    start = await backend.begin(prompt, max_tokens=12, params=SamplingParams(stop=(stop, "\0never")))
    (rolled,) = await backend.rollout([start], 8, seed=7)
    for plain, stopped in zip(found, rolled, strict=True):
        expected = plain.text.split(stop)[0]
        assert stopped.text == expected
        assert stopped.finish_reason == ("stop" if stop in plain.text else plain.finish_reason)
    assert any(stop in plain.text for plain in found)
    state = start
    for seed in range(12):
        (new,) = await backend.extend(state, 1, tokens=1, seed=seed)
        assert stop not in new.text
        assert new.text.startswith(state.text), "a text only grows, even when a stop string begins"
        state = new


@check
async def stop_strings_that_span_two_draws_end_a_sequence(backend: Backend, prompt: Prompt) -> None:
    if not (backend.capabilities.continue_prefix and backend.capabilities.seed):
        pytest.skip("no parts that fit together")

    async def parts(seed: int, stop: tuple[str, ...]) -> list[State]:
        """Draw a response token by token, and return all states on the way; the draws depend on the seed alone."""
        states = [await backend.begin(prompt, max_tokens=12, params=SamplingParams(stop=stop))]
        while not states[-1].finished:
            states += await backend.extend(states[-1], 1, tokens=1, seed=100 * seed + len(states))
        return states

    found = 0
    for seed in range(6):
        plain = await parts(seed, ())
        texts = [state.text for state in plain]
        ends = [len(one) for one, other in itertools.pairwise(texts) if 0 < len(one) < len(other)]
        for end in ends[1:3]:
            stop = texts[-1][end - 1 : end + 1]
            stopped = await parts(seed, (stop, "\0never"))
            assert stopped[-1].text == texts[-1].split(stop)[0]
            assert stopped[-1].finish_reason == "stop"
            for before, after in itertools.pairwise(stopped):
                assert after.text.startswith(before.text), "a text only grows, even when a stop string begins"
            for state, (rolled,) in zip(stopped, await backend.rollout(stopped, 1, seed=seed), strict=True):
                assert rolled.text.startswith(state.text)
                assert stop not in rolled.text
            found += 1
    assert found, "the prompt of this check must draw some text"


@check
async def bad_requests_are_refused(backend: Backend, prompt: Prompt) -> None:
    bad: list[Any] = ["", " \n", [], [{"role": "user"}], [{"role": "user", "content": ""}], 7, None, b"bytes"]
    for value in bad:
        with pytest.raises(PromptError):
            await backend.begin(value, max_tokens=4, params=PLAIN)
    with pytest.raises(PromptError, match="at least 1"):
        await backend.begin(prompt, max_tokens=0, params=PLAIN)
    for settings in ({"temperature": math.nan}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}, {"stop": ("",)}):
        with pytest.raises(PromptError):
            SamplingParams(**settings)


@check
async def counts_below_one_and_what_is_no_count_are_refused(backend: Backend, prompt: Prompt) -> None:
    start = await backend.begin(prompt, max_tokens=4, params=PLAIN)
    wrong: list[Any] = [0, -3, 1.5, True]
    for value in wrong:
        with pytest.raises(PromptError, match="max_tokens must be a whole number of at least 1"):
            await backend.begin(prompt, max_tokens=value, params=PLAIN)
        with pytest.raises(BackendError, match="extend needs at least one state of at least one token"):
            await backend.extend(start, value, tokens=4, seed=0)
        with pytest.raises(BackendError, match="extend needs at least one state of at least one token"):
            await backend.extend(start, 1, tokens=value, seed=0)
        with pytest.raises(BackendError, match="rollout needs at least one completion per state"):
            await backend.rollout([start], value, seed=0)


@check
async def states_of_others_are_refused(backend: Backend, prompt: Prompt) -> None:
    start = await backend.begin(prompt, max_tokens=4, params=PLAIN)
    drawn = await backend.rollout([start], 1, seed=0)
    alien = State()
    with pytest.raises(BackendError, match="cannot go on from a State of another backend"):
        await backend.extend(alien, 1, tokens=1, seed=0)
    with pytest.raises(BackendError, match="cannot go on from a State of another backend"):
        await backend.rollout([start, alien], 1, seed=0)
    with pytest.raises(BackendError, match="cannot go on from"):
        backend.adopt(alien, [start])
    if backend.capabilities.score:
        with pytest.raises(BackendError, match="cannot go on from a State of another backend"):
            await backend.score([alien], drawn)


@check
async def closing_twice_is_harmless(backend: Backend, prompt: Prompt) -> None:
    start = await backend.begin(prompt, max_tokens=4, params=PLAIN)
    await backend.aclose()
    await backend.aclose()
    with pytest.raises(BackendClosedError):
        await backend.extend(start, 1, tokens=2, seed=0)
    with pytest.raises(BackendClosedError):
        await backend.rollout([start], 1, seed=0)
