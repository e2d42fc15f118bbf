"""What can be asked, and what is said of what cannot."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from ets_agent import ETSConfig, GuidedRequest, RequestError
from ets_agent.guided.request import EFFORTS, Settings


def test_a_question_alone_is_a_request() -> None:
    assert GuidedRequest.build("q") == GuidedRequest(question="q")
    assert GuidedRequest.build({"question": "q"}).effort == "medium"
    request = GuidedRequest(question="q")
    assert GuidedRequest.build(request) is request


def test_none_is_as_good_as_nothing() -> None:
    given = dict.fromkeys(GuidedRequest.model_fields) | {"question": "q"}
    assert GuidedRequest.build(given) == GuidedRequest(question="q")


def test_requests_survive_json() -> None:
    request = GuidedRequest.build(
        {
            "messages": [{"role": "user", "content": "q"}],
            "reward": {"name": "regex", "pattern": "a"},
            "effort": "low",
            "settings": {"num_rollouts": [2, 4], "stop": "\n", "temperature": 0.5},
            "max_tokens": 8,
            "timeout": 1.5,
            "token_budget": 99,
        }
    )
    assert GuidedRequest.model_validate_json(request.model_dump_json()) == request


def test_settings_are_those_of_the_sampler_that_have_no_field_of_their_own() -> None:
    assert set(Settings.model_fields) == set(ETSConfig.model_fields) - {"max_tokens", "timeout"}
    assert not any(field.is_required() for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "exactly one of question, messages and continuation is needed, not none"),
        ({"question": "q", "continuation": "c"}, "exactly one of .* is needed, not question and continuation"),
        ({"question": "q", "model": "m"}, "there is no field 'model'; allowed: question, messages, continuation, "),
        ({"question": ["q"]}, r"question is \['q'\]: input should be a valid string"),
        ({"messages": [{"role": "user"}]}, r"messages\.0\.content is .*: field required"),
        ({"messages": "q"}, "messages is 'q'"),
        ({"messages": [{"role": "user", "content": "q", "name": "n"}]}, r"there is no field 'messages\.0\.name'"),
        ({"question": "q", "effort": "max"}, "effort is 'max': input should be 'low', 'medium' or 'high'"),
        ({"question": "q", "max_tokens": 0}, "max_tokens is 0: input should be greater than or equal to 1"),
        ({"question": "q", "max_tokens": 1.5}, "max_tokens is 1.5: "),
        ({"question": "q", "max_tokens": True}, "max_tokens is True; allowed: a number"),
        ({"question": "q", "timeout": -1}, "timeout is -1: input should be greater than 0"),
        ({"question": "q", "timeout": float("nan")}, "timeout is nan: "),
        ({"question": "q", "timeout": float("inf")}, "timeout is inf: input should be a finite number"),
        ({"question": "q", "token_budget": 0}, "token_budget is 0: "),
        ({"question": "q", "settings": {"num_candidates": 0}}, r"settings\.num_candidates is 0: "),
        ({"question": "q", "settings": {"num_candidates": True}}, "num_candidates is True; allowed: a number"),
        ({"question": "q", "settings": {"num_rollouts": [4, 2]}}, r"settings\.num_rollouts.*allowed: a number of at "),
        ({"question": "q", "settings": {"timeout": 3}}, r"there is no field 'settings\.timeout'"),
        ({"question": "q", "settings": {"temperature": "hot"}}, r"settings\.temperature is 'hot'"),
        ({"question": "q", "reward": 3}, "reward"),
        ([("question", "q")], "a request is a question or an object with its fields, not list"),
        (None, "not NoneType"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_wrong_is_said_by_name(given: Any, said: str) -> None:
    with pytest.raises(RequestError, match=said):
        GuidedRequest.build(given)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(RequestError, match=r"effort is 'x'.*; max_tokens is 0"):
        GuidedRequest.build({"question": "q", "effort": "x", "max_tokens": 0})


def test_a_long_input_is_not_repeated_in_full() -> None:
    with pytest.raises(RequestError) as caught:
        GuidedRequest.build({"question": "q", "effort": "x" * 10_000})
    assert len(str(caught.value)) < 300


def test_requests_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        GuidedRequest(question="q").question = "r"  # type: ignore[misc]


def test_a_question_is_a_chat_where_the_model_takes_one() -> None:
    assert GuidedRequest(question="q").prompt(chat=True) == [{"role": "user", "content": "q"}]
    assert GuidedRequest(question="q").prompt(chat=False) == "q"


def test_messages_need_a_model_that_takes_them() -> None:
    request = GuidedRequest.build({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]})
    assert request.prompt(chat=True) == [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    with pytest.raises(RequestError, match="takes no chat messages; give a question or a continuation"):
        request.prompt(chat=False)


@pytest.mark.parametrize("chat", [True, False])
def test_a_continuation_stays_text(chat: bool) -> None:
    assert GuidedRequest(continuation="c").prompt(chat=chat) == "c"


def test_each_effort_draws_more_than_the_one_before() -> None:
    work = [each["num_candidates"] * (1 + each["num_rollouts"] * each["num_steps"]) for each in EFFORTS.values()]
    assert list(EFFORTS) == ["low", "medium", "high"]
    assert work[0] * 2 < work[1] < work[2] / 2


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"question": "q", "effort": "huge"}, "effort"),
        ({"question": "q", "max_tokens": 0}, "max_tokens"),
        ({"question": "q", "timeout": True}, "timeout"),
        ({"question": "q", "settings": {"top_p": 2}}, "settings.top_p"),
        ({"question": "q", "settings": {"num_rollouts": [3, 1]}}, "settings.num_rollouts"),
        ({"question": "q", "settings": {"seed": False}}, "settings.seed"),
        ({"messages": [{"role": 1, "content": "c"}]}, "messages"),
        ({"question": "q", "nonsense": 1}, "nonsense"),
        ({"question": "q", "continuation": "c"}, None),
        ({}, None),
    ],
    ids=str,
)
def test_an_error_names_its_field(fields: dict[str, Any], field: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        GuidedRequest.build(fields)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"question": "q", "settings": {"timeout": 3}},
            "no field 'settings.timeout'; allowed: num_candidates, .*seed$",
        ),
        ({"messages": [{"role": "user", "content": "", "name": "n"}]}, "'messages.0.name'; allowed: role, content$"),
        (
            {"question": "q", "reward": ["regex"]},
            r"^reward is \['regex'\]; allowed: a reward's name, or an object with",
        ),
    ],
    ids=str,
)
def test_what_is_allowed_is_told_of_the_place_where_it_is_wrong(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        GuidedRequest.build(fields)


def test_lists_stand_for_tuples_also_in_strict_json() -> None:
    text = '{"num_rollouts": [1, 4], "stop": ["a", "b"], "seed": 3}'
    settings = Settings.model_validate_json(text, strict=True)
    assert settings.model_dump(exclude_none=True) == {"num_rollouts": (1, 4), "stop": ("a", "b"), "seed": 3}
    assert Settings.model_validate_json('{"stop": "a"}', strict=True).model_dump(exclude_none=True) == {"stop": ("a",)}
    with pytest.raises(ValidationError, match="allowed: a number of at least 1, or"):
        Settings.model_validate_json('{"num_rollouts": [4, 1]}', strict=True)
