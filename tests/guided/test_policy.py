"""What an operator lets agents ask for: nothing beyond it gets through, however it is written."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rewards
from backends import Completion
from backends.scripted import ScriptedBackend
from ets_agent import ConfigError, ETSConfig, GuidedReasoning, GuidedRequest, Policy, RequestError, RewardOffer
from ets_agent.guided.policy import _CALLER_ARGUMENTS, DEFAULT_REWARDS
from ets_agent.guided.request import EFFORTS
from rewards import RewardSpecError, registry

BASE = ETSConfig()
TEST = {"name": "code_tests", "test": "assert True"}


@pytest.fixture
def _registry_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))


def asked(reward: Any, policy: Policy | None = None) -> Any:
    return (policy or Policy()).reward(GuidedRequest.build({"question": "q", "reward": reward}))


def config(policy: Policy | None = None, base: ETSConfig = BASE, *, one_step: bool = False, **fields: Any) -> ETSConfig:
    request = GuidedRequest.build({"question": "q", **fields})
    return (policy or Policy()).config(request, base, one_step=one_step)


ESCAPES: list[Any] = [
    "code_tests",
    "code_tests:test=assert True",
    "  code_tests : test=assert True",
    "\ncode_tests",
    "CODE_TESTS",
    "ｃｏｄｅ_tests",
    "code_tests\u200b",
    "cоde_tests",  # a Cyrillic o
    TEST,
    json.dumps(TEST),
    "  " + json.dumps(TEST),
    '{"name": "self_consistency", "name": "code_tests", "test": "assert True"}',
    '{"\\u006eame": "code_\\u0074ests", "test": "assert True"}',
    '{"name": ["code_tests"], "test": "assert True"}',
    {"name": ["self_consistency", "code_tests"]},
    {"name": TEST},
    {"name": None},
    {},
    [TEST],
    ["self_consistency"],
    "self_consistency:name=code_tests",
    "self_consistency:name=code_tests,test=assert True",
    "self_consistency,code_tests",
    "self_consistency:extractor=answer,extractor=choice",
    {"name": "self_consistency", "reward": TEST},
    {"name": "self_consistency", "NAME": "code_tests"},
    {"name": "self_consistency", "name ": "code_tests"},
    {"name": "self_consistency", "": TEST},
    {"name": "self_consistency", "extractor": "os.system"},
    {"name": "self_consistency", "extractor": TEST},
    {"name": "self_consistency", "accumulate": True},
    {"name": "self_consistency", "sandbox": None},
    {"name": "gate", "condition": "self_consistency", "reward": TEST},
    {"name": "weighted_sum", "rewards": [TEST], "weights": [1]},
    {"name": "product", "rewards": ["self_consistency", TEST]},
    {"name": "clip", "reward": TEST},
    {"name": "rescale", "reward": TEST},
    "code_consistency:inputs=[[1]]",
    "llm_judge:model=tiny/qwen3",
    {"name": "llm_judge", "model": "openai/gpt@http://169.254.169.254/v1"},
    "reward_model:model=some/model",
    "similarity:model=some/model",
    {"name": "similarity", "model": "some/model"},
    {"name": "similarity", "timeout": 1e9},
    {"name": "json_schema", "schema": {}, "timeout": 1e9},
    {"name": "json_schema", "schema": "{}", "timeout": None},
    {"name": "regex", "pattern": "a", "timeout": 1e9},
    {"name": "regex", "pattern": ["a"]},
    {"name": "regex", "pattern": None},
    {"name": "regex"},
    "regex:pattern=(",
    {"name": "json_schema", "schema": "{"},
    {"name": "json_schema", "schema": "[" * 100_000},
    {"name": "json_schema", "schema": {"type": "nonsense"}},
    "",
    ":",
    "{",
    "{" * 100_000,
    "self_consistency:",
    "self_consistency:extractor",
    "../self_consistency",
    "rewards.code:CodeTests",
]


@pytest.mark.parametrize("reward", ESCAPES, ids=lambda reward: str(reward)[:70])
def test_what_is_not_on_offer_cannot_be_had(reward: Any) -> None:
    with pytest.raises(RequestError):
        asked(reward)


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(RequestError) as caught:
        asked(TEST)
    assert str(caught.value) == (
        "reward 'code_tests' is not allowed here; allowed: self_consistency, json_schema, regex, similarity"
    )
    with pytest.raises(RequestError, match="reward 'regex' takes no argument 'timeout' here; allowed: pattern, ignore"):
        asked("regex:pattern=a,timeout=3")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([info.name for info in rewards.available()])
KEYS = st.sampled_from(["name", "test", "reward", "rewards", "model", "sandbox", "extractor", "schema", "pattern"])


@given(
    st.text()
    | st.builds("{}:{}={}".format, NAMES, KEYS, st.text())
    | st.dictionaries(KEYS | st.text(), NAMES | JSON, max_size=4)
    | st.dictionaries(KEYS, NAMES | JSON, max_size=4).map(json.dumps)
)
def test_whatever_is_asked_is_on_offer_or_refused(reward: Any) -> None:
    try:
        spec = asked(reward)
    except RequestError:
        return
    assert isinstance(spec, dict)
    assert spec["name"] in DEFAULT_REWARDS
    assert set(spec) <= {"name", *_CALLER_ARGUMENTS.get(spec["name"], ())}


@pytest.mark.parametrize(
    "reward",
    [None, "self_consistency", "self_consistency:extractor=choice", {"name": "similarity"}, "regex:pattern=^a",
     {"name": "json_schema", "schema": {"type": "object"}}, {"name": "json_schema", "schema": '{"type": "object"}'},
     '{"name": "regex", "pattern": "a", "full": true}'],
    ids=str,
)  # fmt: skip
def test_what_is_on_offer_is_built(reward: Any) -> None:
    assert rewards.build(asked(reward)).name in DEFAULT_REWARDS


OPERATORS = {
    "model", "sandbox", "timeout", "memory", "reward", "rewards", "condition", "concurrency", "seed", "weights",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(info.name for info in rewards.available()))
def test_of_a_reward_offered_by_name_callers_choose_what_is_about_the_task(name: str) -> None:
    takes = {parameter.name for parameter in rewards.describe(name).parameters}
    theirs = set(_CALLER_ARGUMENTS.get(name, ()))
    needed = [each.name for each in rewards.describe(name).parameters if each.required and each.name not in theirs]
    lists = {"rewards": ["similarity"], "weights": [1.0]}
    fixed = {each: lists.get(each, "the operator's") for each in needed}
    offer = RewardOffer(name=name, reward={"name": name, **fixed})
    assert set(offer.caller_arguments) == theirs <= takes
    for argument in takes - theirs:
        with pytest.raises(RequestError, match=f"takes no argument '{argument}' here"):
            asked({"name": name, argument: None}, Policy(rewards=[offer]))
    assert not OPERATORS & set(offer.caller_arguments)


def test_an_offer_that_nobody_could_use_is_the_operators_mistake() -> None:
    with pytest.raises(ConfigError, match="'llm_judge' needs 'model', which callers cannot give; fix it, as in llm"):
        Policy(rewards=["llm_judge"])
    with pytest.raises(ConfigError, match=r"'key' needs 'gold', which callers cannot give; .* exact_match:gold="):
        RewardOffer(name="key", reward="exact_match", arguments=("ignore_case",))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("code_tests:timeout=abc", "timeout='abc': Input should be a valid number"),
        ("code_tests:sandbox=none", "sandbox='none': Input should be 'auto', 'bubblewrap', 'docker' or 'unsafe'"),
        ("regex:pattern=(", r"pattern '\(' is no regular expression"),
        ("regex:full=5", "full=5: Input should be a valid boolean"),
        ("self_consistency:extractor=bogus", "extractor='bogus': Input should be 'answer' or 'choice'"),
        ("json_schema:schema=5", "schema=5: Input should be a valid dictionary"),
        ('json_schema:schema={"type": "nonsense"}', "nonsense"),
        ("llm_judge:model=tiny/qwen3,votes=0", "votes must be at least 1, not 0"),
    ],
)
def test_wrong_fixed_arguments_are_the_operators_mistake(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"reward 'mine': .*{message}"):
        RewardOffer(name="mine", reward=spec)


def test_a_refusal_says_nothing_of_fixed_arguments_that_only_show_themselves_with_the_callers() -> None:
    policy = Policy(rewards=[RewardOffer(name="mine", reward="choice:options=99")])
    with pytest.raises(RequestError) as caught:
        asked("mine:gold=B", policy)
    assert str(caught.value) == (
        "reward 'mine': these arguments do not go with what is fixed here (it takes: gold: str)"
    )
    with pytest.raises(RequestError, match="reward 'mine': missing argument 'gold'"):
        asked("mine", policy)
    with pytest.raises(RequestError, match="reward 'mine': gold=5: Input should be a valid string"):
        asked({"name": "mine", "gold": 5}, policy)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            {"name": "judge", "rubric": 5},
            "reward 'judge': rubric=5: Input should be a valid string (it takes: rubric: str = ",
        ),
        (
            "tests",
            "reward 'tests': missing argument 'test' (it takes: test: str | list[str], prompt: str | None = None, ",
        ),
        ({"name": "like", "pattern": "("}, "reward 'like': pattern '(' is no regular expression: "),
    ],
)
def test_refusals_tell_of_what_callers_may_give_and_of_nothing_else(request_: Any, message: str) -> None:
    policy = Policy(
        rewards=[
            RewardOffer(name="judge", reward="llm_judge:model=tiny/qwen3"),
            RewardOffer(name="tests", reward="code_tests:sandbox=unsafe"),
            RewardOffer(name="like", reward="regex:full=true"),
        ]
    )
    with pytest.raises(RequestError) as caught:
        asked(request_, policy)
    assert str(caught.value).startswith(message)
    told = str(caught.value).replace(message, "")
    assert not any(f"{hidden}:" in told for hidden in ("model", "votes", "sandbox", "timeout", "memory_mb", "full"))


@pytest.mark.usefixtures("_registry_restored")
async def test_a_request_makes_its_reward_once_and_its_run_closes_it() -> None:
    made, closed = list[Any](), list[Any]()

    @rewards.register("holding")
    class Holding(rewards.PointwiseReward):
        def __init__(self, *, word: str) -> None:
            made.append(self)

        async def judge(self, prompt: Any, completion: Completion) -> float:
            return 1.0

        async def aclose(self) -> None:
            closed.append(self)

    policy = Policy(rewards=[RewardOffer(name="holding", arguments=("word",))])
    with pytest.raises(RequestError, match="word=5"):
        asked({"name": "holding", "word": 5}, policy)
    assert asked("holding:word=a", policy) == {"name": "holding", "word": "a"}
    assert not made
    async with GuidedReasoning(ScriptedBackend(["a"]), policy=policy) as reasoning:
        await reasoning("q", reward="holding:word=a")
    assert len(made) == 1
    assert closed == made


def test_the_first_reward_is_the_default() -> None:
    assert asked(None, Policy(rewards=["similarity", "self_consistency"])) == {"name": "similarity"}
    with pytest.raises(RequestError, match="missing argument 'pattern'"):
        asked(None, Policy(rewards=["regex"]))


def test_fixed_arguments_are_the_operators() -> None:
    policy = Policy(rewards=[RewardOffer(name="check", reward={"name": "math_answer", "gold": "42"})])
    assert asked("check", policy) == {"name": "math_answer", "gold": "42"}
    for attempt in ({"name": "check", "gold": "7"}, "check:gold=7", "math_answer:gold=7", {"name": "check", "a": 1}):
        with pytest.raises(RequestError):
            asked(attempt, policy)
    with pytest.raises(ConfigError, match="has a fixed 'gold', so callers cannot give it"):
        RewardOffer(name="check", reward={"name": "math_answer", "gold": "42"}, arguments=("gold",))


def test_what_is_not_fixed_stays_the_callers() -> None:
    policy = Policy(rewards=[RewardOffer(name="like", reward={"name": "regex", "ignore_case": True})])
    assert asked("like:pattern=a", policy) == {"name": "regex", "pattern": "a", "ignore_case": True}
    with pytest.raises(RequestError, match="takes no argument 'ignore_case' here; allowed: pattern, full"):
        asked({"name": "like", "pattern": "a", "ignore_case": False}, policy)


def test_an_operator_may_leave_callers_fewer_arguments_or_none() -> None:
    policy = Policy(rewards=[RewardOffer(name="self_consistency", arguments=())])
    with pytest.raises(RequestError, match="allowed: none"):
        asked("self_consistency:extractor=choice", policy)


def test_code_runs_only_where_it_is_offered_and_then_in_the_operators_sandbox() -> None:
    policy = Policy(rewards=[RewardOffer(name="tests", reward={"name": "code_tests", "sandbox": "bubblewrap"})])
    offer = policy.offers["tests"]
    assert offer.caller_arguments == ("test", "prompt", "entry_point")
    with pytest.raises(RequestError, match="takes no argument 'sandbox' here"):
        asked({"name": "tests", "test": "assert True", "sandbox": "unsafe"}, policy)


@pytest.mark.usefixtures("_registry_restored")
def test_no_argument_turns_a_reward_into_another() -> None:
    @rewards.register("named")
    def named(completion: Completion, *, name: str = "a", size: int = 1) -> float:
        return float(size)

    with pytest.raises(ConfigError, match="has no argument 'name'; allowed: "):
        RewardOffer(name="named", arguments=("name",))
    policy = Policy(rewards=[RewardOffer(name="named", arguments=("size",))])
    assert asked("named:size=3", policy)["name"] == "named"
    with pytest.raises(RequestError):
        asked("named:name=code_tests", policy)


def test_functions_and_rewards_are_offered_as_they_are() -> None:
    def shout(completion: Completion) -> float:
        return float(completion.text.isupper())

    reward = rewards.build("similarity")
    policy = Policy(
        rewards=[
            RewardOffer(name="shout", reward=shout, description="Capitals."),
            RewardOffer(name="shared", reward=reward),
        ]
    )
    assert asked("shout", policy) is shout
    assert asked({"name": "shared"}, policy) is reward
    assert policy.offers["shout"].summary == "Capitals."
    assert policy.offers["shared"].schemas == {}
    with pytest.raises(RequestError, match="reward 'shout' takes no argument 'x' here; allowed: none"):
        asked("shout:x=1", policy)
    with pytest.raises(ConfigError, match="'shout' is no registered reward, so callers cannot give arguments"):
        RewardOffer(name="shout", reward=shout, arguments=("x",))


def test_an_offer_of_what_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(RewardSpecError, match="no reward is called 'self_consistancy'; did you mean"):
        Policy(rewards=["self_consistancy"])
    with pytest.raises(ConfigError, match="reward 'regex' has no argument 'patern'; allowed: full, ignore_case, "):
        RewardOffer(name="regex", arguments=("patern",))
    with pytest.raises(ConfigError, match="reward 'regex' is offered twice"):
        Policy(rewards=["regex", RewardOffer(name="regex", reward="similarity")])
    for none in ([], "regex", ()):
        with pytest.raises(ConfigError, match="rewards must be a list of at least one"):
            Policy(rewards=none)


@pytest.mark.parametrize("name", ["max_candidates", "max_rollouts", "max_steps", "max_tokens", "max_token_budget"])
@pytest.mark.parametrize("value", [0, -1, True, 1.5, "8", math.nan])
def test_ceilings_are_whole_numbers_above_0(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .*; allowed: a whole number above 0"):
        Policy(**{name: value})


@pytest.mark.parametrize("value", [0, -1.0, True, math.nan, math.inf, "8"])
def test_the_longest_time_is_a_number_above_0(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"max_seconds is .*; allowed: a number above 0"):
        Policy(max_seconds=value)


@pytest.mark.parametrize(
    ("limits", "fields", "said"),
    [
        ({"max_tokens": 64}, {"max_tokens": 65}, "max_tokens is 65; allowed: at most 64"),
        ({"max_candidates": 8}, {"settings": {"num_candidates": 9}},
         "num_candidates times num_chains is 9; allowed: at most 8"),
        ({"max_candidates": 8}, {"settings": {"num_candidates": 4, "num_chains": 3}}, "num_chains is 12; allowed"),
        ({"max_rollouts": 4}, {"settings": {"num_rollouts": 5}}, "num_rollouts is 5; allowed: at most 4"),
        ({"max_rollouts": 4}, {"settings": {"num_rollouts": [1, 5]}}, "num_rollouts is 5; allowed: at most 4"),
        ({"max_steps": 3}, {"settings": {"num_steps": 4}}, "the number of steps is 4; allowed: at most 3"),
        ({"max_steps": 3}, {"settings": {"block_size": 10}, "max_tokens": 31}, "number of steps is 4; allowed"),
        ({"max_seconds": 5}, {"timeout": 5.5}, "timeout is 5.5; allowed: at most 5 seconds"),
        ({}, {"settings": {"num_steps": 9}, "max_tokens": 8}, "num_steps is 9; allowed: 1 to max_tokens, which is 8"),
        ({}, {"settings": {"num_steps": 2, "block_size": 3}}, "give one of the two"),
    ],
    ids=str,
)  # fmt: skip
def test_nothing_beyond_a_ceiling_is_cut_down_silently(
    limits: dict[str, Any], fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(RequestError, match=said):
        config(Policy(**limits), **fields)


def test_ceilings_themselves_are_allowed() -> None:
    policy = Policy(max_candidates=6, max_rollouts=3, max_steps=2, max_tokens=16, max_seconds=4)
    settings = {"num_candidates": 6, "num_rollouts": 3, "num_steps": 2}
    found = config(policy, settings=settings, max_tokens=16, timeout=4)
    assert (found.num_candidates, found.num_rollouts, len(found.blocks), found.max_tokens, found.timeout) == (
        6, 3, 2, 16, 4,
    )  # fmt: skip


@pytest.mark.parametrize("effort", EFFORTS)
def test_efforts_are_settings(effort: Any) -> None:
    found = config(effort=effort)
    assert {name: getattr(found, name) for name in EFFORTS[effort]} == EFFORTS[effort]


@pytest.mark.parametrize("effort", EFFORTS)
def test_an_effort_is_always_possible(effort: Any) -> None:
    policy = Policy(max_candidates=3, max_rollouts=1, max_steps=1, max_tokens=1)
    found = config(policy, effort=effort)
    assert (found.num_candidates, found.num_rollouts, len(found.blocks)) == (3, 1, 1)
    assert len(config(effort=effort, max_tokens=1).blocks) == 1
    assert len(config(effort=effort, one_step=True).blocks) == 1
    assert len(config(base=ETSConfig(block_size=7), effort=effort).blocks) == EFFORTS[effort]["num_steps"]


def test_settings_go_before_the_effort_and_the_operators() -> None:
    base = ETSConfig(temperature=0.7, kl_coef=0.2, max_tokens=100, num_candidates=30, seed=5, stop="\n")
    found = config(base=base, effort="high", settings={"num_candidates": 3, "kl_coef": 0.0, "block_size": 25})
    assert (found.num_candidates, found.num_rollouts, found.kl_coef) == (3, EFFORTS["high"]["num_rollouts"], 0.0)
    assert found.blocks == [25, 25, 25, 25]
    assert (found.temperature, found.seed, found.stop) == (0.7, 5, ("\n",))
    assert config(base=base).num_candidates == EFFORTS["medium"]["num_candidates"]


def test_without_a_wish_the_smaller_limit_holds() -> None:
    policy = Policy(max_tokens=64, max_seconds=10)
    assert config(policy, ETSConfig(max_tokens=512)).max_tokens == 64
    assert config(policy, ETSConfig(max_tokens=32)).max_tokens == 32
    assert config(policy).timeout == 10
    assert config(policy, ETSConfig(timeout=3)).timeout == 3
    assert config(policy, ETSConfig(timeout=30)).timeout == 10
    assert config(policy, ETSConfig(timeout=3), timeout=8).timeout == 8
    unlimited = Policy(max_seconds=None)
    assert config(unlimited).timeout is None
    assert config(unlimited, timeout=1e6).timeout == 1e6


def test_token_budgets_have_a_ceiling_that_is_the_default() -> None:
    def budget(policy: Policy, **fields: Any) -> int | None:
        return policy.token_budget(GuidedRequest.build({"question": "q", **fields}))

    assert budget(Policy()) is None
    assert budget(Policy(), token_budget=10**9) == 10**9
    limited = Policy(max_token_budget=100)
    assert budget(limited) == 100
    assert budget(limited, token_budget=100) == 100
    with pytest.raises(RequestError, match="token_budget is 101; allowed: at most 100"):
        budget(limited, token_budget=101)


def test_a_mapping_of_the_caller_stays_as_it_is() -> None:
    spec = {"name": "json_schema", "schema": '{"type": "object"}'}
    asked(spec)
    assert spec == {"name": "json_schema", "schema": '{"type": "object"}'}


@pytest.mark.parametrize(
    "reward",
    [
        {"name": "json_schema", "schema": {"allOf": [{"minimum": 1}] * 5000}},
        {"name": "regex", "pattern": "(a|b)?" * 5000},
        "regex:pattern=" + "(a|b)?" * 5000,
        json.dumps({"name": "regex", "pattern": "(a|b)?" * 5000}),
    ],
)
def test_a_reward_that_would_take_long_to_compile_is_refused_at_once(reward: Any) -> None:
    began = time.process_time()
    with pytest.raises(RequestError, match=r"length of the reward with its arguments is .* at most 20000"):
        Policy().reward(GuidedRequest(question="q", reward=reward))
    assert time.process_time() - began < 0.1
    assert Policy(max_reward_chars=10**6).offers


def test_a_reward_that_json_cannot_hold_is_refused() -> None:
    deep: Any = {}
    for _ in range(3000):
        deep = {"not": deep}
    with pytest.raises(RequestError, match="is no JSON: maximum recursion depth"):
        Policy().reward(GuidedRequest(question="q", reward={"name": "json_schema", "schema": deep}))


@pytest.mark.parametrize("stop", [["x"] * 17, ["x" * 257]])
def test_stop_strings_have_a_ceiling(stop: list[str]) -> None:
    with pytest.raises(RequestError, match="stop string"):
        Policy().config(GuidedRequest.build({"question": "q", "settings": {"stop": stop}}), BASE, one_step=False)
    allowed = GuidedRequest.build({"question": "q", "settings": {"stop": ["x" * 256] * 16}})
    assert len(Policy().config(allowed, BASE, one_step=False).stop) == 16


@pytest.mark.parametrize("settings", [None, {"num_chains": 8}])
def test_an_effort_is_cut_to_what_is_allowed_over_all_chains(settings: Any) -> None:
    request = GuidedRequest.build({"question": "q", "effort": "high", "settings": settings})
    config = Policy().config(request, ETSConfig(num_chains=4), one_step=False)
    assert config.num_candidates * config.num_chains == 32


def test_who_fixes_the_task_fixes_all_of_it() -> None:
    for fixed in ({"name": "regex", "pattern": "a"}, {"name": "code_tests", "test": "assert True"}):
        policy = Policy(rewards=[RewardOffer(name="own", reward=fixed)])
        for argument in ("full", "prompt"):
            with pytest.raises(RequestError, match=f"takes no argument '{argument}' here; allowed: none"):
                asked({"name": "own", argument: "x"}, policy)
