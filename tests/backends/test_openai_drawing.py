"""What is drawn from OpenAI-compatible servers: texts of several requests, stop strings, ends of all kinds, limits."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import pytest

from backends import CapabilityError, ContextLengthError, EndpointError, SamplingParams, State
from backends.endpoints.decoding import Detokenizer
from backends.errors import TokenizerMismatchError, UnusableDrawError
from backends.openai import OpenAIBackend
from backends.pool import Pool
from backends.retries import RetryPolicy
from ets_agent import ETS
from tests.fake_server import Drawn, FakeServer, Fault, FaultPlan, ScriptedModel

from .test_conformance import QUESTION as LOCAL_QUESTION

QUESTION = "What is 3 + 4?"
QUICK = RetryPolicy(attempts=3, first_delay=0.001, longest_delay=0.002, deadline=60.0)
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
PLAIN = SamplingParams()
LETTERS = "a b c d e f g h i j k l m n o p q r s t u v w x y z"


async def connect(server: FakeServer, **options: Any) -> OpenAIBackend:
    return await OpenAIBackend.connect(server.model.name, server.base_url, **({"retries": QUICK} | options))


def draws(server: FakeServer) -> list[dict[str, Any]]:
    return [record.body for path in ("/v1/completions", "/v1/chat/completions") for record in server.records.all(path)]


# Stop strings


@pytest.mark.parametrize("profile", ["vllm", "completions", "completions_no_n"])
async def test_a_stop_string_that_begins_in_one_block_and_ends_in_the_next_is_seen(profile: Any) -> None:
    stops = SamplingParams(stop=("= 7",))
    with FakeServer(ScriptedModel(["3 + 4 = 7 so #### 7"]), profile=profile) as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=20, params=stops)
            (first,) = await backend.extend(start, 1, tokens=4, seed=0)
            (second,) = await backend.extend(first, 1, tokens=3, seed=0)
            ((rolled,),) = await backend.rollout([first], 1, seed=0)
            ets = ETS(backend, "self_consistency", num_candidates=2, num_rollouts=2, block_size=2, max_tokens=12)
            told, result = "", None
            async for event in ets.stream(QUESTION, seed=0, stop=["= 7"]):
                told += getattr(event, "delta", "")
                result = getattr(event, "result", None)
    assert (first.text, first.finished) == ("3 + 4 ", False)
    assert (second.text, second.finish_reason) == ("3 + 4 ", "stop")
    assert (rolled.text, rolled.finish_reason) == ("3 + 4 ", "stop")
    assert result is not None
    assert told == result.text == "3 + 4 "


async def test_tokens_after_a_stop_string_that_the_server_did_not_see_do_not_count() -> None:
    with FakeServer(ScriptedModel(["3 + 4 = 7 so #### 7"]), profile="completions") as server:
        async with await connect(server) as backend:
            params = SamplingParams(stop=("= 7",), confidence=True)
            start = await backend.begin(QUESTION, max_tokens=20, params=params)
            (first,) = await backend.extend(start, 1, tokens=4, seed=0)
            ((rolled,),) = await backend.rollout([first], 1, seed=0)
    assert rolled.num_tokens == 1
    assert rolled.confidence is not None
    assert rolled.confidence.num_tokens == 5


async def test_a_stop_string_is_found_after_a_character_that_two_requests_share(tiny: Any) -> None:
    from tests.fake_server.local import LocalModel

    ids = tuple(tiny._tokenizer("4 日", add_special_tokens=False)["input_ids"])[:-1]
    within = State(text="4 ", num_tokens=len(ids), token_ids=ids)
    found = 0
    with FakeServer(LocalModel(tiny)) as server:
        async with await connect(server) as backend:
            start = await backend.begin(LOCAL_QUESTION, max_tokens=30, params=PLAIN)
            (rows,) = await backend.rollout(backend.adopt(start, [within]), 6, seed=3)
            for row in rows:
                pieces = [tiny._tokenizer.decode([token]) for token in row.token_ids]
                pairs = [
                    place
                    for place in range(1, len(pieces) - 2)
                    if (pieces[place] + pieces[place + 1]).isascii() and len(pieces[place] + pieces[place + 1]) >= 2
                ]
                for place in pairs[:2]:
                    stop = pieces[place] + pieces[place + 1]
                    params = replace(PLAIN, stop=(stop,))
                    start = await backend.begin(LOCAL_QUESTION, max_tokens=30, params=params)
                    (again,) = await backend.rollout(backend.adopt(start, [within]), 6, seed=3)
                    for plain, stopped in zip(rows, again, strict=True):
                        assert stopped.text == plain.text.split(stop)[0]
                        assert stopped.token_ids == plain.token_ids[: len(stopped.token_ids)]
                        assert stopped.finish_reason == ("stop" if stop in plain.text else plain.finish_reason)
                        if stop in plain.text:
                            shown = tiny._tokenizer.decode([*ids, *stopped.token_ids])
                            assert stop in shown
                            assert stop not in tiny._tokenizer.decode([*ids, *stopped.token_ids[:-1]])
                            found += 1
    assert found > 5


async def test_of_two_stop_strings_the_one_that_is_complete_first_ends_a_response() -> None:
    with FakeServer(ScriptedModel(["3 + 4 = 7 so #### 7"])) as server:
        async with await connect(server) as backend:
            # The server sees the second only, and cuts where it begins.
            start = await backend.begin(QUESTION, max_tokens=20, params=SamplingParams(stop=("= 7", "7 so")))
            (state,) = await backend.extend(start, 1, tokens=4, seed=0)
            ((rolled,),) = await backend.rollout([state], 1, seed=0)
    assert (rolled.text, rolled.num_tokens) == ("3 + 4 ", 1)


async def test_a_stop_string_in_the_question_does_not_end_an_answer_that_goes_on_within_a_character(tiny: Any) -> None:
    from tests.fake_server.local import LocalModel

    ids = tuple(tiny._tokenizer("4 日", add_special_tokens=False)["input_ids"])[:-1]
    params = SamplingParams(stop=(LOCAL_QUESTION[:4],))
    with FakeServer(LocalModel(tiny)) as server:
        async with await connect(server) as backend:
            start = await backend.begin(LOCAL_QUESTION, max_tokens=30, params=params)
            (within,) = backend.adopt(start, [State(text="4 ", num_tokens=len(ids), token_ids=ids)])
            ((row,),) = await backend.rollout([within], 1, seed=3)
    assert LOCAL_QUESTION[:4] not in row.text
    assert len(row.token_ids) > 3


# Texts


async def test_special_tokens_are_left_out_of_adopted_texts_as_they_are_of_drawn_ones(tiny: Any) -> None:
    from tests.fake_server.local import LocalModel

    tokenizer = tiny._tokenizer
    special = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    four, day = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("4 ", "日本"))
    for stop in ((), ("日本", "never")):
        params = SamplingParams(stop=stop)
        for ids in ([*four, special, *day[:3]], [*four, special, *day[:2]], [*four, special], [*four, day[0], special]):
            given = State(text="", num_tokens=len(ids), token_ids=tuple(ids))
            (other,) = tiny.adopt(await tiny.begin(LOCAL_QUESTION, max_tokens=30, params=params), [given])
            with FakeServer(LocalModel(tiny)) as server:
                async with await connect(server) as backend:
                    start = await backend.begin(LOCAL_QUESTION, max_tokens=30, params=params)
                    (state,) = backend.adopt(start, [other])
                    (rows,) = await backend.rollout([state], 3, seed=3)
            for row in rows:
                assert row.text.startswith(other.text)
                whole = tokenizer.decode([*ids, *row.token_ids], skip_special_tokens=True)
                if ids[-2:] == [day[0], special]:  # Of a broken character, nothing is left.
                    whole = whole.replace(REPLACEMENT, "", 1)
                assert row.text == whole.rstrip(REPLACEMENT)


async def test_special_tokens_are_left_out_of_what_completes_a_character(tiny: Any) -> None:
    from tests.fake_server.local import LocalModel

    tokenizer = tiny._tokenizer
    special = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    ids = tokenizer("4 日本 is 日 > 4 日", add_special_tokens=False)["input_ids"]
    before, after = ids[:4], ids[4:]
    with FakeServer(LocalModel(tiny)) as server:
        async with await connect(server) as backend:
            client = backend._dialect.client  # type: ignore[attr-defined]
            # Within a character, a special token would break it.
            places = [n for n in range(1, len(after) + 1) if tokenizer.decode(ids[: 4 + n])[-1] != REPLACEMENT]
            for place in places:
                for drawn in ([*after[:place], special, *after[place:]], [*after[:place], special, special]):
                    # vLLM tells the text of the question along with it.
                    question = tokenizer("Well?")["input_ids"]
                    told = tokenizer.decode([*question, *before, *drawn], skip_special_tokens=True)
                    texts = Detokenizer(client=client, model=tiny.name)
                    seam = await texts.at(before, "4 ")
                    expected = tokenizer.decode([*before, *drawn], skip_special_tokens=True)
                    assert await seam.text(drawn, told) == expected
                    assert texts.special == {special}
                    asked = server.records.total
                    assert await seam.text(drawn, told) == expected
                    assert server.records.total == asked + 1, "what was found out is known"


async def test_a_text_that_differs_otherwise_says_nothing_of_tokens(tiny: Any) -> None:
    from tests.fake_server.local import LocalModel

    ids = tiny._tokenizer("4 日本 is 日", add_special_tokens=False)["input_ids"]
    with FakeServer(LocalModel(tiny)) as server:
        async with await connect(server) as backend:
            texts = Detokenizer(client=backend._dialect.client, model=tiny.name)  # type: ignore[attr-defined]
            seam = await texts.at(ids[:4], "4 ")
            assert await seam.text(ids[4:], "something else") == "4 日本 is 日"
    assert not texts.special


async def test_what_ends_a_response_is_no_part_of_it() -> None:
    with FakeServer(ScriptedModel(["it is 7"], end_text="<|user|>")) as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=10, params=SamplingParams(stop=("never",)))
            ((row,),) = await backend.rollout([start], 1, seed=0)
            (state,) = await backend.extend(start, 1, tokens=9, seed=0)
    assert (row.text, row.finish_reason, row.num_tokens) == ("it is 7", "stop", 4)
    assert (state.text, state.finish_reason) == ("it is 7", "stop")


class Marking(ScriptedModel):
    """Ends each block with a mark for half a character, as servers do that leave nothing out."""

    async def draw(self, *args: Any, **options: Any) -> list[Drawn]:
        rows = await super().draw(*args, **options)
        return [replace(row, text=row.text + REPLACEMENT * (row.finish_reason == "length")) for row in rows]


async def test_a_server_of_text_is_not_sent_half_a_character() -> None:
    with FakeServer(Marking([LETTERS]), profile="completions") as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=30, params=PLAIN)
            asked = len(draws(server))
            (state,) = await backend.extend(start, 1, tokens=2, seed=0)
            ((rolled,),) = await backend.rollout([state], 1, seed=0)
            short = await backend.begin(QUESTION, max_tokens=3, params=PLAIN)
            (last,) = await backend.extend(short, 1, tokens=2, seed=0)
        bodies = draws(server)[asked:]
    assert [body["max_tokens"] for body in bodies] == [2, 3, 4, 5, 6, 24, 2, 3], "as many as a character can take"
    assert len({body["seed"] for body in bodies[:5]}) == 1
    assert bodies[5]["prompt"] == f"{QUESTION}a b c d e f"
    assert (state.text, state.num_tokens, rolled.text) == ("a b c d e f", 6, LETTERS)
    assert (last.text, last.num_tokens, last.finish_reason) == ("a b c", 3, "length")


# Ends of other kinds


@pytest.mark.parametrize("profile", ["vllm", "completions", "chat"])
@pytest.mark.parametrize("reason", ["content_filter", "tool_calls"])
async def test_a_row_that_ended_otherwise_costs_itself_and_is_not_asked_for_again(
    profile: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = ScriptedModel({"it is 7": 3.0, "it is a secret": 1.0})
    with FakeServer(model, profile=profile) as server:
        async with await connect(server) as backend:
            model.reasons = {"it is a secret": reason}
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            asked = len(draws(server))
            with caplog.at_level(logging.WARNING, "backends"):
                (rows,) = await backend.rollout([start], 16, seed=1)
            assert len(draws(server)) == asked + 1
            with pytest.raises(
                UnusableDrawError, match=rf"cannot be used: the server ended it for the reason '{reason}'"
            ):
                await backend.extend(start, 16, tokens=10, seed=1)
            assert len(draws(server)) == asked + 2
    failed = [row for row in rows if row.finish_reason == "error"]
    assert 0 < len(failed) < 16
    assert {row.text for row in rows if row.finish_reason != "error"} == {"it is 7"}
    assert all(row.error and reason in row.error and row.final for row in failed)
    assert f"{len(failed)} of 16 rollouts failed" in caplog.text


async def test_rows_that_all_ended_otherwise_are_an_error() -> None:
    model = ScriptedModel({"it is 7": 1.0, "it is a secret": 1e6})
    with FakeServer(model, profile="chat") as server:
        async with await connect(server, api="chat") as backend:
            model.reasons = {"it is a secret": "content_filter"}
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            with pytest.raises(UnusableDrawError, match=r"no usable rollout: .*'content_filter'") as caught:
                await backend.rollout([start, start], 4, seed=1)
    assert not caught.value.retryable


ONCE = RetryPolicy(attempts=1)
FILTERED = {"it is 7": 1.0, "it is a secret": 1e6}
"""Nearly always what `filtering` makes the server filter."""


def filtering(model: ScriptedModel) -> None:
    model.reasons = {"it is a secret": "content_filter"}


async def test_rows_that_ended_otherwise_are_not_lost_where_the_other_requests_failed() -> None:
    model = ScriptedModel(FILTERED)
    with FakeServer(model, profile="chat_no_n") as server:
        async with await connect(server, api="chat", retries=ONCE) as backend:
            filtering(model)
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            server.faults = FaultPlan.first("server_error")
            (rows,) = await backend.rollout([start], 4, seed=1)
            assert sorted((row.finish_reason, row.final) for row in rows) == [("error", False), *[("error", True)] * 3]
            server.faults = FaultPlan.always("server_error")
            with pytest.raises(EndpointError) as caught:
                await backend.rollout([start], 4, seed=1)
    assert caught.value.status == 500


async def test_candidates_that_ended_otherwise_are_the_error_where_other_requests_failed_too() -> None:
    model = ScriptedModel(FILTERED)
    with FakeServer(model, profile="chat_no_n") as server:
        async with await connect(server, api="chat", retries=ONCE) as backend:
            filtering(model)
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            server.faults = FaultPlan.first("server_error")
            with pytest.raises(UnusableDrawError, match="content_filter"):
                await backend.extend(start, 4, tokens=10, seed=1)
            model.reasons = {}
            server.faults = FaultPlan.first("server_error")
            with pytest.raises(EndpointError) as caught:
                await backend.extend(start, 4, tokens=10, seed=1)
    assert caught.value.status == 500


async def test_a_pool_draws_only_what_failed_of_a_rollout_all_of_whose_other_rows_ended_otherwise() -> None:
    model = ScriptedModel(FILTERED)
    with FakeServer(model, profile="chat_no_n") as server, FakeServer(ScriptedModel(["it is 7"])) as other:
        one, two = await connect(server, api="chat", retries=ONCE), await connect(other, api="chat", retries=ONCE)
        async with Pool([one, two]) as pool:
            filtering(model)
            start = await pool.begin(QUESTION, max_tokens=10, params=PLAIN)
            server.faults = FaultPlan.first("server_error")
            (rows,) = await pool.rollout([start], 4, seed=1)
    assert sorted((row.text, row.final) for row in rows) == [("", True)] * 3 + [("it is 7", False)]


async def test_a_reason_that_is_no_word_is_not_repeated() -> None:
    secret = "sk-0123456789 was refused"
    model = ScriptedModel({"it is 7": 1.0, "it is a secret": 1.0})
    with FakeServer(model) as server:
        async with await connect(server) as backend:
            model.reasons = {"it is a secret": secret}
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            (rows,) = await backend.rollout([start], 16, seed=1)
    assert {row.error for row in rows} == {
        None,
        "the server ended it for a reason that is no word; allowed: 'stop' and 'length'",
    }


async def test_a_request_that_the_server_aborted_is_sent_again() -> None:
    model = ScriptedModel({"it is 7": 1.0, "it is a secret": 1.0})
    with FakeServer(model) as server:
        async with await connect(server) as backend:
            model.reasons = {"it is a secret": "abort"}
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            asked = len(draws(server))
            with pytest.raises(EndpointError, match=r"ended for the reason 'abort'.*gave up after 3 tries"):
                await backend.rollout([start], 16, seed=1)
            assert len(draws(server)) == asked + 3


# Limits


@pytest.mark.parametrize("profile", ["vllm", "completions", "completions_no_n", "chat", "chat_no_n"])
async def test_a_limit_of_the_servers_own_is_told_and_never_taken_for_the_end(profile: Any) -> None:
    model = ScriptedModel({LETTERS: 3.0, "a b": 1.0})
    with FakeServer(model, profile=profile, most_tokens=17) as server:
        async with await connect(server) as backend:
            fits = await backend.begin(QUESTION, max_tokens=17, params=PLAIN)
            (rows,) = await backend.rollout([fits], 8, seed=1)
            assert {row.text for row in rows} == {LETTERS[:33], "a b"}
            start = await backend.begin(QUESTION, max_tokens=30, params=PLAIN)
            asked = len(draws(server))
            with pytest.raises(CapabilityError, match=r"ended an answer after \d+ tokens, although 30 were asked for"):
                await backend.rollout([start], 8, seed=1)
            with pytest.raises(CapabilityError, match="Lower max_tokens, or raise that limit"):
                await backend.extend(start, 8, tokens=30, seed=1)
            ets = ETS(backend, "self_consistency", num_steps=1, num_candidates=8, max_tokens=30)
            with pytest.raises(CapabilityError, match="has a limit of its own"):
                await ets.complete(QUESTION, seed=0)
            bodies = draws(server)[asked:]
    assert len(bodies) == len({str(body) for body in bodies}), "nothing is asked for twice"


@pytest.mark.parametrize("profile", ["chat", "chat_no_n", "vllm"])
async def test_an_answer_of_reasoning_alone_is_an_empty_one(profile: Any) -> None:
    with FakeServer(ScriptedModel([LETTERS]), profile=profile, reasoning=6) as server:
        async with await connect(server, api="chat") as backend:
            asked = len(draws(server))
            start = await backend.begin(QUESTION, max_tokens=5, params=PLAIN)
            (rows,) = await backend.rollout([start], 3, seed=1)
            assert [(row.text, row.finish_reason, row.num_tokens) for row in rows] == [("", "length", 5)] * 3
            longer = await backend.begin(QUESTION, max_tokens=8, params=PLAIN)
            (state,) = await backend.extend(longer, 1, tokens=8, seed=1)
            assert (state.text, state.finish_reason, state.num_tokens) == ("g h", "length", 8)
            bodies = [str(body) for body in draws(server)[asked:]]
    assert len(bodies) == len(set(bodies)), "nothing is asked for twice"


async def test_a_response_that_uses_its_whole_budget_can_be_scored() -> None:
    with FakeServer(ScriptedModel([LETTERS * 4], max_model_len=100)) as server:
        async with await connect(server) as backend:
            prompt = len((await backend.begin(QUESTION, max_tokens=1, params=PLAIN)).prompt)  # type: ignore[attr-defined]
            most = 100 - prompt - 1
            start = await backend.begin(QUESTION, max_tokens=most, params=PLAIN)
            drawn = await backend.rollout([start], 1, seed=0)
            assert drawn[0][0].num_tokens == most
            assert await backend.score([start], drawn) == [[pytest.approx(drawn[0][0].logprob)]]
            with pytest.raises(ContextLengthError, match="allows 100 together, of which one is needed for scoring"):
                await backend.begin(QUESTION, max_tokens=most + 1, params=PLAIN)
            # Where nothing can be scored, nothing is kept back.
            await backend.begin(QUESTION, max_tokens=most + 1, params=SamplingParams(temperature=0.5))


async def test_a_proposal_whose_responses_end_otherwise_is_refused() -> None:
    reference, proposal = ScriptedModel({"a b c": 1.0, "a d": 1.0}), ScriptedModel({"a b c": 1.0, "a d": 3.0})
    with FakeServer(reference) as one, FakeServer(proposal) as other:
        async with await connect(one) as scores, await connect(other) as drawing:
            ets = ETS(scores, "self_consistency", drawing, block_size=1, num_candidates=3, max_tokens=8)
            asked = len(draws(one))
            await ets.complete(QUESTION, seed=0)
            assert sum("allowed_token_ids" in body for body in draws(one)[asked:]) == 1, "it is asked for once"
        reference.end_ids = frozenset({1})
        async with await connect(one) as scores, await connect(other) as drawing:
            ets = ETS(scores, "self_consistency", drawing, block_size=1, num_candidates=3, max_tokens=8)
            for _ in range(2):
                with pytest.raises(TokenizerMismatchError, match="ends responses with token 0, which ends none of"):
                    await ets.complete(QUESTION, seed=0)
            # A stop string ends with any token.
            result = await ets.complete(QUESTION, seed=0, stop=["never"])
            assert result.text in {"a b c", "a d"}


class EndingSooner(ScriptedModel):
    """Ends a response at a further token, as chat models do that were made of a base model."""

    def _row(self, *args: Any) -> Drawn:
        row = super()._row(*args)
        place = next((place for place, token in enumerate(row.token_ids) if token in self.end_ids), None)
        if place is None:
            return row
        ids = row.token_ids[: place + 1]
        steps = None if row.steps is None else row.steps[: place + 1]
        return Drawn(token_ids=ids, text=self.decode(ids[:-1], skip_special=True), finish_reason="stop", steps=steps)


async def test_a_proposal_that_draws_on_past_the_end_of_a_response_is_refused() -> None:
    script = {"x yes <|stop|> and more": 1.0, "x no": 1.0}
    reference, proposal = EndingSooner(script), ScriptedModel(script)
    within = proposal.encode(" <|stop|>", special=False)[0]
    with FakeServer(reference) as one, FakeServer(proposal) as other:
        for ends in ({0}, {0, within}):
            reference.end_ids = frozenset(ends)
            async with await connect(one) as scores, await connect(other) as drawing:
                ets = ETS(scores, "self_consistency", drawing, block_size=1, num_candidates=4, max_tokens=12)
                if within not in ends:
                    asked = len(draws(one))
                    await ets.complete(QUESTION, seed=0)
                    await ets.complete(QUESTION, seed=0)
                    asking = [body["allowed_token_ids"] for body in draws(one)[asked:] if "allowed_token_ids" in body]
                    assert sorted(asking) == [[0], [within]], "each token is asked about once"
                    continue
                # Whatever the stop strings.
                for stop in ([], ["never"]):
                    with pytest.raises(TokenizerMismatchError, match=f"goes on after token {within}, which ends"):
                        await ets.complete(QUESTION, seed=0, stop=stop)


class Refusal(Fault):
    """A request that the server does not know."""

    @property
    def error(self) -> tuple[int, str]:
        return 400, "not implemented"


async def test_a_server_that_does_not_say_what_ends_a_response_is_believed() -> None:
    script = {"x yes <|stop|> and more": 1.0, "x no": 1.0}
    refusing = FaultPlan(
        lambda asked: Refusal(kind="server_error") if "allowed_token_ids" in (asked.body or {}) else None
    )
    with FakeServer(ScriptedModel(script), faults=refusing) as one, FakeServer(ScriptedModel(script)) as other:
        async with await connect(one) as scores, await connect(other) as drawing:
            ets = ETS(scores, "self_consistency", drawing, block_size=1, num_candidates=4, max_tokens=12)
            result = await ets.complete(QUESTION, seed=0)
    assert result.text in script


@pytest.mark.parametrize("profile", ["completions", "chat"])
async def test_text_and_chat_servers_are_told_what_they_may_have_other_defaults_for(profile: Any) -> None:
    with FakeServer(ScriptedModel(["it is 7"]), profile=profile) as server:
        async with await connect(server) as backend:
            start = await backend.begin(QUESTION, max_tokens=10, params=PLAIN)
            await backend.rollout([start], 2, seed=1)
        last = draws(server)[-1]
    assert (last["presence_penalty"], last["frequency_penalty"]) == (0.0, 0.0)
    assert "top_k" not in last, "this server refuses what it does not know"
