"""What may be asked, and what a caller is told of everything else."""

from __future__ import annotations

from typing import Any

import pytest

from backends.scripted import ScriptedBackend
from ets_agent import ETSConfig, Policy
from ets_agent.server import Limits
from tests.server.served import LOW, QUESTION, SCRIPT, Served

Fields = dict[str, Any]


@pytest.fixture
def prompts() -> list[Any]:
    return []


@pytest.fixture
def listening(prompts: list[Any]) -> Any:
    """A server that remembers what its model was given."""

    def script(prompt: Any) -> dict[str, float]:
        prompts.append(prompt)
        return SCRIPT

    with Served(ScriptedBackend(script), config=ETSConfig(max_tokens=32, seed=0)) as served:
        yield served


def test_messages_reach_the_model_as_text(listening: Served, prompts: list[Any]) -> None:
    parts = [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}]
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": parts, "name": "ada"},
        {"role": "assistant", "content": "42", "tool_calls": None, "refusal": None},
        {"role": "user", "content": "Sure?"},
    ]
    assert listening.chat(messages=messages, **LOW).status == 200
    assert prompts[0] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "How many?"},
        {"role": "assistant", "content": "42"},
        {"role": "user", "content": "Sure?"},
    ]


def test_a_text_is_continued_as_it_stands(listening: Served, prompts: list[Any]) -> None:
    assert listening.complete(**LOW).status == 200
    assert prompts == [QUESTION]


def test_settings_reach_the_run(scripted: Served) -> None:
    ets = {"effort": "low", "settings": {"num_candidates": 3, "num_steps": 1}, "timeout": 20, "token_budget": 5000}
    answer = scripted.chat(ets=ets, temperature=0, seed=9, max_tokens=16)
    (choice,) = answer.json["choices"]
    assert choice["message"]["content"] == "12 + 30 = 42\n#### 42"
    assert choice["ets"]["seed"] == 9
    assert choice["ets"]["usage"]["candidate_tokens"] == 3 * 8


@pytest.mark.parametrize("settings", [{"num_rollouts": [1, 4]}, {"stop": ["a"]}, {"stop": "a"}])
def test_settings_that_are_lists_come_as_json_has_them(scripted: Served, settings: Fields) -> None:
    answer = scripted.chat(ets={"settings": settings})
    assert answer.status == 200, answer.text


def test_a_token_budget_cuts_a_run_short(scripted: Served) -> None:
    (choice,) = scripted.chat(ets={"token_budget": 5}, seed=1).json["choices"]
    assert choice["finish_reason"] == "length"
    assert (choice["ets"]["finish_reason"], choice["ets"]["cut_short"]) == ("budget", True)


def test_a_reward_may_be_named_with_its_arguments(scripted: Served) -> None:
    reward = {"name": "regex", "pattern": "43$"}
    (choice,) = scripted.chat(ets={"reward": reward, "effort": "high"}, seed=1).json["choices"]
    assert choice["message"]["content"].endswith("43")
    assert choice["ets"]["reward"] == 1.0


FORMAT: Fields = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "integer"}, "strict": True}}


@pytest.mark.parametrize("response_format", [FORMAT, {"type": "json_object"}])
def test_a_response_format_guides_as_a_reward(response_format: Fields) -> None:
    script = {"no JSON": 5.0, "7": 1.0} if response_format is FORMAT else {"no JSON": 5.0, '{"a":7}': 1.0}
    with Served(ScriptedBackend(script)) as served:
        (choice,) = served.chat(response_format=response_format, ets={"effort": "high"}, seed=0).json["choices"]
        assert choice["message"]["content"] != "no JSON"
        assert choice["ets"]["reward"] == 1.0


def test_a_response_format_is_refused_where_its_reward_is_not_on_offer() -> None:
    with Served(ScriptedBackend(SCRIPT), policy=Policy(rewards=["self_consistency"], max_tokens=64)) as served:
        error = served.chat(response_format=FORMAT).error
        assert error["param"] == "response_format"
        assert "json_schema is not on offer" in error["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"user": "ada", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "parallel_tool_calls": False},
        {"tools": [], "tool_choice": "none", "logit_bias": {}, "logprobs": False, "top_logprobs": 0},
        {"frequency_penalty": 0, "presence_penalty": 0.0, "modalities": ["text"], "audio": None, "n": None},
        {"response_format": {"type": "text"}, "stop": None, "seed": None, "stream": False, "stream_options": None},
        {"max_tokens": 8, "max_completion_tokens": 8, "stop": []},
        {"guided_json": None, "stop_token_ids": [], "min_tokens": 0, "ignore_eos": False, "bad_words": []},
        {"length_penalty": 1.0, "use_beam_search": False, "chat_template_kwargs": {}, "add_generation_prompt": True},
        {"continue_final_message": False, "include_stop_str_in_output": False, "prompt_logprobs": None},
    ],
)
def test_fields_that_change_nothing_are_ignored(scripted: Served, fields: Fields) -> None:
    answer = scripted.chat(**LOW, **fields)
    assert answer.status == 200, answer.text
    assert answer.json["choices"][0]["ets"]["warnings"] == []


def test_a_field_that_nobody_knows_is_ignored_with_a_warning(scripted: Served) -> None:
    (choice,) = scripted.chat(**LOW, temprature=2).json["choices"]
    assert choice["ets"]["warnings"] == ["the field 'temprature' is not known here and was ignored"]


def test_many_such_fields_have_one_warning_of_bounded_length(scripted: Served) -> None:
    answer = scripted.chat(n=8, **LOW, **{f"{number}{'x' * 50}": 1 for number in range(15_000)})
    for choice in answer.json["choices"]:
        (warning,) = choice["ets"]["warnings"]
        assert warning.startswith("the fields '0xx")
        assert warning.endswith(" and 14,984 more are not known here and were ignored")
        assert len(warning) < 2000
    (choice,) = scripted.chat(**LOW, one=1, two=2).json["choices"]
    assert choice["ets"]["warnings"] == ["the fields 'one', 'two' are not known here and were ignored"]


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**63 - 1, 0])
def test_the_seed_that_an_answer_tells_gives_it_again(scripted: Served, seed: int) -> None:
    (first,) = scripted.chat(seed=seed).json["choices"]
    told = first["ets"]["seed"]
    assert 0 <= told < 2**63
    (again,) = scripted.chat(seed=told).json["choices"]
    assert again["ets"]["seed"] == told
    assert again["message"] == first["message"]
    assert again["ets"]["confidence"] == first["ets"]["confidence"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"audio": {"voice": "alloy", "format": "mp3"}}, "audio"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"top_k": 5}, "top_k"),
        ({"guided_json": {"type": "object"}}, "guided_json"),
        ({"guided_regex": "a"}, "guided_regex"),
        ({"guided_choice": ["a"]}, "guided_choice"),
        ({"guided_grammar": "root"}, "guided_grammar"),
        ({"structured_outputs": {"choice": ["a"]}}, "structured_outputs"),
        ({"stop_token_ids": [2]}, "stop_token_ids"),
        ({"allowed_token_ids": [2]}, "allowed_token_ids"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"include_stop_str_in_output": True}, "include_stop_str_in_output"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"length_penalty": 2}, "length_penalty"),
        ({"use_beam_search": True}, "use_beam_search"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
        ({"truncate_prompt_tokens": 9}, "truncate_prompt_tokens"),
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
        ({"continue_final_message": True}, "continue_final_message"),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused(
    scripted: Served, fields: Fields, param: str
) -> None:
    answer = scripted.chat(**fields)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert answer.error["code"] == "unsupported_parameter"
    assert f"{param} is not supported" in answer.error["message"]


@pytest.mark.parametrize("name", ["guided_json", "structured_outputs"])
def test_what_is_named_instead_exists_at_both_addresses(scripted: Served, name: str) -> None:
    for ask in (scripted.chat, scripted.complete):
        message = ask(**{name: {"type": "object"}}).error["message"]
        assert message == f"{name} is not supported; use ets.reward, such as json_schema"
    reward = {"name": "json_schema", "schema": {"type": "object"}}
    assert scripted.chat(ets={"reward": reward}).status == scripted.complete(ets={"reward": reward}).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"echo": True}, "echo"), ({"best_of": 3}, "best_of"), ({"suffix": "."}, "suffix"), ({"logprobs": 0}, "logprobs")],
)
def test_the_older_interface_refuses_its_own(scripted: Served, fields: Fields, param: str) -> None:
    answer = scripted.complete(**fields)
    assert (answer.status, answer.error["param"]) == (400, param)


USER = {"role": "user", "content": "?"}


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"messages": []}, "messages", "messages: list should have at least 1 item after validation, not 0"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "messages[0].content is missing"),
        ({"messages": [USER, {"role": "user", "content": 5}]}, "messages[1].content", "messages[1].content is 5: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "messages[0].role is 'tool': "),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "messages[0].content[0].type is 'image_url': input should be 'text'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}, USER]},
            "messages[0].tool_calls",
            "tools and audio are not supported",
        ),
        ({"temperature": 3}, "temperature", "temperature is 3: input should be less than or equal to 2"),
        ({"temperature": True}, "temperature", "temperature is True: input should be a valid number"),
        ({"top_p": 0}, "top_p", "top_p is 0: "),
        ({"n": 0}, "n", "n is 0: "),
        ({"n": 9}, "n", "9 answers are asked for at once; allowed: at most 8"),
        ({"seed": 2**63}, "seed", "seed is 9223372036854775808: "),
        ({"seed": -(2**63) - 1}, "seed", "seed is -9223372036854775809: "),
        ({"max_tokens": "8"}, "max_tokens", "max_tokens is '8': input should be a valid integer"),
        ({"max_tokens": 8, "max_completion_tokens": 9}, "max_completion_tokens", "give one of the two"),
        ({"max_tokens": 65}, "max_tokens", "max_tokens is 65; allowed: at most 64"),
        ({"stop": ""}, "stop", "stop is '': "),
        ({"stop": ["a"] * 17}, "stop", "at most 16 items"),
        ({"stream": "yes"}, "stream", "stream is 'yes': "),
        ({"response_format": {"type": "xml"}}, "response_format.type", "response_format.type is 'xml': "),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "is missing"),
        ({"response_format": FORMAT, "ets": {"reward": "regex:pattern=a"}}, "response_format", "give one"),
        ({"ets": {"effrt": "low"}}, "ets.effrt", "allowed: reward, effort, settings, timeout, token_budget"),
        ({"ets": {"effort": "huge"}}, "ets.effort", "ets.effort is 'huge': "),
        ({"ets": {"settings": {"kl": 1}}}, "ets.settings.kl", "there is no field 'ets.settings.kl'; allowed: num_cand"),
        ({"ets": {"settings": {"max_tokens": 8}}}, "ets.settings.max_tokens", "there is no field"),
        ({"ets": {"settings": {"num_rollouts": [3, 1]}}}, "ets.settings.num_rollouts", "allowed: a number of at least"),
        ({"ets": {"settings": {"seed": 1}}, "seed": 1}, "ets.settings.seed", "seed is given twice"),
        (
            {"ets": {"settings": {"num_candidates": 33}}},
            "ets.settings.num_candidates",
            "num_candidates times num_chains is 33; allowed: at most",
        ),
        (
            {"ets": {"reward": "code_tests:test=x"}},
            "ets.reward",
            "reward 'code_tests' is not allowed here; allowed: self_cons",
        ),
        ({"ets": {"reward": {"name": "regex", "pattern": "("}}}, "ets.reward", "pattern"),
        ({"ets": {"reward": 5}}, "ets.reward", "ets.reward is 5: "),
        ({"ets": {"timeout": 0}}, "ets.timeout", "ets.timeout is 0: "),
        ({"ets": {"timeout": 121}}, "ets.timeout", "timeout is 121; allowed: at most 120 seconds"),
        ({"ets": []}, "ets", "ets: "),
        ({"model": None}, "model", "model is None: "),
    ],
)
def test_what_is_not_allowed_is_refused_in_words(
    scripted: Served, fields: Fields, param: str | None, message: str
) -> None:
    for stream in (False, True):
        answer = scripted.chat(**{"stream": stream} | fields)
        assert answer.status == 400, answer.text
        assert answer.error["type"] == "invalid_request_error"
        assert answer.error["param"] == param, answer.error
        assert message in answer.error["message"]


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2], [3]], ["text", 3]])
def test_tokens_are_no_prompt(scripted: Served, prompt: Any) -> None:
    answer = scripted.complete(prompt=prompt)
    assert (answer.status, answer.error["param"]) == (400, "prompt")
    assert "tokens are not understood" in answer.error["message"]


@pytest.mark.parametrize("prompt", ["", [], [""], None, 7])
def test_a_prompt_is_needed(scripted: Served, prompt: Any) -> None:
    answer = scripted.complete(prompt=prompt)
    assert answer.status == 400
    assert answer.error["param"] in ("prompt", "prompt[0]")


def test_prompts_times_n_are_limited() -> None:
    with Served(ScriptedBackend(SCRIPT), limits=Limits(max_answers=3)) as served:
        assert served.complete(prompt=["a", "b", "c"], **LOW).status == 200
        assert served.complete(prompt=["a", "b"], n=2, **LOW).status == 400


def test_a_model_without_chat_says_so() -> None:
    from backends import Capabilities

    with Served(ScriptedBackend(SCRIPT, capabilities=Capabilities(chat=False))) as served:
        assert "takes no chat" in served.chat().error["message"]
        assert served.complete(**LOW).status == 200


def test_the_model_has_all_its_names() -> None:
    with Served(ScriptedBackend(SCRIPT), names=["gpt-4o", "mine/best"]) as served:
        assert [model["id"] for model in served.ask("GET", "/v1/models").json["data"]] == [
            "gpt-4o",
            "mine/best",
            "scripted",
        ]
        for name in ("gpt-4o", "mine/best", "scripted"):
            assert served.chat(model=name, **LOW).json["model"] == "gpt-4o"
            assert served.ask("GET", f"/v1/models/{name}").json["id"] == name
        assert served.ask("GET", "/v1/models/mine%2Fbest").json["id"] == "mine/best"
        assert served.chat(model="mine").error["code"] == "model_not_found"


def test_rewards_are_listed_as_the_policy_offers_them() -> None:
    policy = Policy(rewards=["regex", "self_consistency"], max_tokens=64)
    with Served(ScriptedBackend(SCRIPT), policy=policy) as served:
        first, second = served.ask("GET", "/v1/rewards").json["data"]
        assert (first["id"], first["default"], second["default"]) == ("regex", True, False)
        assert set(first["arguments"]) == {"pattern", "ignore_case", "full"}
        assert first["arguments"]["pattern"]["type"] == "string"


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("GET", "/", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/healthz", 405, "method_not_allowed"),
    ],
)
def test_other_addresses_and_methods_have_errors_of_the_same_form(
    scripted: Served, method: str, path: str, status: int, code: str
) -> None:
    answer = scripted.ask(method, path)
    assert (answer.status, answer.error["code"]) == (status, code)
    assert ("allow" in answer.headers) == (status == 405)


def test_the_server_tells_that_it_is_up(scripted: Served) -> None:
    assert scripted.ask("GET", "/healthz").json == {"status": "ok"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"max_tokens": 65}, "max_tokens"),
        ({"max_completion_tokens": 65}, "max_completion_tokens"),
        ({"ets": {"timeout": 1000}}, "ets.timeout"),
        ({"ets": {"reward": "wisdom"}}, "ets.reward"),
        ({"ets": {"reward": {"name": "regex", "pattern": "("}}}, "ets.reward"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": 1}}}}, "response_format"),
        ({"ets": {"settings": {"num_candidates": 1000}}}, "ets.settings.num_candidates"),
        ({"ets": {"settings": {"num_rollouts": 1000}}}, "ets.settings.num_rollouts"),
        ({"ets": {"settings": {"block_size": 1}}, "max_tokens": 64}, "ets.settings.block_size"),
    ],
)
def test_what_the_policy_refuses_is_named(scripted: Served, fields: Fields, param: str) -> None:
    refused = scripted.chat(**fields)
    assert (refused.status, refused.error["param"], refused.error["code"]) == (400, param, "invalid_value")
