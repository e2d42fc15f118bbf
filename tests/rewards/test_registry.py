from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import pytest

import rewards
from backends import Completion, Prompt
from rewards import (
    MathAnswer,
    Reward,
    RewardParameter,
    RewardSpecError,
    SelfConsistency,
    available,
    build,
    register,
    registry,
)

BUILT_IN = {
    "choice",
    "clip",
    "code_consistency",
    "code_tests",
    "entropy",
    "exact_match",
    "gate",
    "json_schema",
    "llm_judge",
    "logprob",
    "math_answer",
    "product",
    "regex",
    "rescale",
    "reward_model",
    "self_certainty",
    "self_consistency",
    "similarity",
    "weighted_sum",
}


@pytest.fixture(autouse=True)
def _registry_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", dict(registry._registry))


class Constant(Reward):
    """The same for all.

    And more about that.
    """

    def __init__(
        self,
        value: float = 0.0,
        *,
        count: int | None = None,
        mode: Literal["a", "b"] = "a",
        pair: tuple[int, int] = (0, 0),
        path: Path | None = None,
        anything=None,  # type: ignore[no-untyped-def]
    ) -> None:
        self.arguments = (value, count, mode, pair, path, anything)
        self.value = value

    async def score(self, prompt: Prompt, completions: Sequence[Completion]) -> list[float | None]:
        return [self.value for _ in completions]


def test_public_names() -> None:
    assert sorted(rewards.__all__) == [
        "Choice",
        "Clip",
        "CodeConsistency",
        "CodeTests",
        "Entropy",
        "ExactMatch",
        "Gate",
        "JSONSchema",
        "LLMJudge",
        "LogProb",
        "MathAnswer",
        "PointwiseReward",
        "Product",
        "Regex",
        "Rescale",
        "Reward",
        "RewardError",
        "RewardInfo",
        "RewardModel",
        "RewardParameter",
        "RewardSpec",
        "RewardSpecError",
        "RewardTimeoutError",
        "SandboxError",
        "SandboxUnavailableError",
        "SelfCertainty",
        "SelfConsistency",
        "Similarity",
        "VotingReward",
        "WeightedSum",
        "argument_schemas",
        "available",
        "build",
        "canonical",
        "check",
        "describe",
        "equivalence_keys",
        "extract_answer",
        "extract_choice",
        "parse",
        "register",
    ]
    assert all(hasattr(rewards, name) for name in rewards.__all__)


def test_import_is_light() -> None:
    script = "import sys, rewards; print(*{'torch', 'pydantic', 'transformers', 'ets_agent'} & sys.modules.keys())"
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    assert run.stdout.strip() == ""


async def test_specifications_of_all_kinds() -> None:
    register("constant")(Constant)
    assert isinstance(build("self_consistency"), SelfConsistency)
    assert isinstance(build({"name": "math_answer", "gold": 42}), MathAnswer)
    assert isinstance(build(' {"name": "math_answer", "gold": 42}'), MathAnswer)
    assert await build("constant:value=2").score("q", [Completion(text="")]) == [2.0]
    assert await build(Constant).score("q", [Completion(text="")]) == [0.0]
    assert await build(lambda c: len(c.text)).score("q", [Completion(text="abc")]) == [3.0]
    reward = Constant(1.0)
    assert build(reward) is reward


def test_building_leaves_a_mapping_alone() -> None:
    spec = {"name": "math_answer", "gold": 1}
    build(spec)
    assert spec == {"name": "math_answer", "gold": 1}


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("value=2", (2, None, "a", (0, 0), None, None)),
        ("value=-1.5e3,count=3", (-1500.0, 3, "a", (0, 0), None, None)),
        (" value = 1 , count = null , mode = b ", (1, None, "b", (0, 0), None, None)),
        ("pair=[1, 2],mode=b", (0, None, "b", (1, 2), None, None)),
        ('anything={"a": [1, "x, y=2"]},value=1', (1, None, "a", (0, 0), None, {"a": [1, "x, y=2"]})),
        ("anything=some, text: with=signs,count=1", (0, 1, "a", (0, 0), None, "some, text: with=signs")),
        ("path=/tmp/x", (0, None, "a", (0, 0), Path("/tmp/x"), None)),
        ('anything="3"', (0, None, "a", (0, 0), None, "3")),
        ("anything=" + "[" * 100_000, (0, None, "a", (0, 0), None, "[" * 100_000)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_arguments_of_a_specification(text: str, arguments: tuple[Any, ...]) -> None:
    register("constant")(Constant)
    reward = build(f"constant:{text}")
    assert isinstance(reward, Constant)
    assert reward.arguments == arguments


@pytest.mark.parametrize("accumulate", ["banana", "yes", "1", "0", "null", '"true"', "True", "[true]", "NaN", "true,"])
def test_truth_values_are_true_or_false(accumulate: str) -> None:
    build("self_consistency:accumulate=true")
    with pytest.raises(RewardSpecError, match=r"reward 'self_consistency': "):
        build(f"self_consistency:accumulate={accumulate}")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", "x", True, None, [1]])
def test_numbers_are_finite_numbers(value: Any) -> None:
    register("constant")(Constant)
    with pytest.raises(RewardSpecError, match="value="):
        build({"name": "constant", "value": value})


@pytest.mark.parametrize("gold", ["NaN", "Infinity", "-Infinity", "1e999", "true", "null", "[1]", "", '""'])
def test_gold_answers_are_answers(gold: str) -> None:
    with pytest.raises(RewardSpecError, match="gold"):
        build(f"math_answer:gold={gold}")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("self_consistancy", r"no reward is called 'self_consistancy'; did you mean 'self_consistency'\? "
                             r"Registered: choice, .*self_consistency"),
        ("zzz", "no reward is called 'zzz'. Registered: choice, "),
        ("", "no reward is called ''"),
        ("math_answer", r"missing argument 'gold' \(it takes: gold: "),
        ("math_answer:gald=1", r"unknown argument 'gald'; missing argument 'gold' \(it takes: gold: "),
        ("math_answer:", "expected key=value"),
        ("math_answer:42", "expected key=value after the colon, or after a comma, but found '42'"),
        ("math_answer:gold=1,gold=2", "'gold' is given twice"),
        ("self_consistency:accumulate=banana", r"accumulate='banana': Input should be a valid boolean \(it takes: "
                                               "accumulate: bool = False, extractor: "),
        ({"gold": 1}, "needs its 'name'"),
        ('{"gold": 1}', "needs its 'name'"),
        ('{"name": ', "begins like a JSON object but is none: Expecting value"),
        ({"name": 3}, "needs its 'name'"),
        ({"name": "math_answer:gold=1"}, "no reward is called 'math_answer:gold=1'"),
        ({"name": "math_answer", "gold": 1, 2: 3}, "unknown argument 2"),
        (MathAnswer, "missing argument 'gold'"),
        (int, "not as <class 'int'>"),
        (None, "not as None"),
        (3, "not as 3"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_specification_is_said(spec: Any, message: str) -> None:
    with pytest.raises(RewardSpecError, match=message):
        build(spec)


def test_errors_of_a_constructor_name_the_reward() -> None:
    class Picky(Constant):
        def __init__(self, size: int = 0) -> None:
            raise ValueError("size must be odd")

    register("picky")(Picky)
    with pytest.raises(RewardSpecError, match="reward 'picky': size must be odd"):
        build("picky:size=2")


def test_unresolvable_annotations_go_unchecked() -> None:
    class Vague(Constant):
        def __init__(self, other: Missing) -> None:  # type: ignore[name-defined]  # noqa: F821
            self.other = other

    register("vague")(Vague)
    reward = build("vague:other=3")
    assert isinstance(reward, Vague)
    assert reward.other == 3


def test_constructors_may_take_more() -> None:
    class Open(Constant):
        def __init__(self, **options: Any) -> None:
            self.options = options

    register("open")(Open)
    reward = build("open:a=1,b=x")
    assert isinstance(reward, Open)
    assert reward.options == {"a": 1, "b": "x"}


def test_a_dataclass_can_be_a_reward() -> None:
    @register("sized")
    @dataclass
    class Sized(Constant):
        size: int

    assert build("sized:size=3") == Sized(3)
    with pytest.raises(RewardSpecError, match="size='x'"):
        build("sized:size=x")


async def test_registered_functions() -> None:
    @register("length")
    def length(completion: Completion) -> float:
        """How long it is."""
        return len(completion.text)

    @register("relative", group=True)
    async def relative(group: list[Completion]) -> list[float]:
        return [len(c.text) / max(len(c.text) for c in group) for c in group]

    group = [Completion(text="a"), Completion(text="bb")]
    assert length(group[1]) == 2
    assert await build("length").score("q", group) == [1.0, 2.0]
    assert await build("relative").score("q", group) == [0.5, 1.0]
    assert await build(relative).score("q", group) == [0.5, 1.0]
    assert build(relative).name == "relative"
    with pytest.raises(RewardSpecError, match=r"reward 'length': unknown argument 'unit' \(it takes: no arguments\)"):
        build("length:unit=1")


async def test_keyword_only_parameters_of_a_function_are_arguments() -> None:
    @register("mentions")
    def mentions(completion: Completion, *, word: str, times: int = 1) -> float:
        return completion.text.count(word) / times

    group = [Completion(text="ab a"), Completion(text="b")]
    assert await build("mentions:word=a").score("q", group) == [2.0, 0.0]
    assert await build({"name": "mentions", "word": "b", "times": 2}).score("q", group) == [0.5, 0.5]
    assert {info.name: info for info in available()}["mentions"].parameters == (
        RewardParameter(name="word", declaration="word: str", required=True),
        RewardParameter(name="times", declaration="times: int = 1", required=False),
    )
    with pytest.raises(
        RewardSpecError, match=r"reward 'mentions': missing argument 'word' \(it takes: word: str, times"
    ):
        build("mentions")
    with pytest.raises(RewardSpecError, match="times='x'"):
        build("mentions:word=a,times=x")
    with pytest.raises(RewardSpecError, match="missing argument 'word'"):
        build(mentions)


@pytest.mark.parametrize(
    ("spec", "text"),
    [("exact_match:gold=21", "21"), ("exact_match:gold=true,ignore_case=true", "TRUE"), ("regex:pattern=[12]", "2")],
)
async def test_text_that_looks_like_json_is_text_where_text_is_wanted(spec: str, text: str) -> None:
    assert await build(spec).score("q", [Completion(text=text)]) == [1.0]


def test_what_has_no_signature_is_refused_at_once() -> None:
    with pytest.raises(RewardSpecError, match="cannot be reward 'smallest'"):
        register("smallest")(min)


def test_registering_twice() -> None:
    assert register("constant")(Constant) is Constant
    assert register("constant")(Constant) is Constant
    with pytest.raises(RewardSpecError, match="there is a reward 'constant' already"):
        register("constant")(lambda completion: 1.0)
    with pytest.raises(RewardSpecError, match="there is a reward 'self_consistency' already"):
        register("self_consistency")(Constant)
    assert Constant.name == "constant"


@pytest.mark.parametrize("name", ["", "a:b", "a,b", "1a", "a b", "a\n", "a=b"])
def test_names_must_fit_into_a_specification(name: str) -> None:
    with pytest.raises(RewardSpecError, match="is no name for a reward"):
        register(name)


@pytest.mark.parametrize("source", [3, int, lambda: 1.0, None])
def test_only_rewards_can_be_registered(source: Any) -> None:
    with pytest.raises(RewardSpecError):
        register("mine")(source)
    with pytest.raises(RewardSpecError, match="no reward is called"):
        build("mine")


def test_group_is_for_functions() -> None:
    with pytest.raises(RewardSpecError, match="are for functions, not for Constant"):
        register("mine", group=True)(Constant)


def test_available_rewards_are_described() -> None:
    register("constant")(Constant)
    register("undocumented")(lambda completion: 1.0)
    infos = {info.name: info for info in available()}
    assert list(infos) == sorted({*BUILT_IN, "constant", "undocumented"})
    assert infos["constant"].summary == "The same for all."
    assert infos["math_answer"].parameters == (
        RewardParameter(name="gold", declaration="gold: str | int | float", required=True),
    )
    assert infos["self_consistency"].parameters[0].declaration == "accumulate: bool = False"
    assert infos["undocumented"].summary == ""
    assert infos["undocumented"].parameters == ()
    assert rewards.describe("constant").description == "And more about that."
    assert rewards.describe("exact_match").description.startswith("Compared is")
    assert "    gold: The right answer, or a list of all that are right." in rewards.describe("exact_match").description
    with pytest.raises(RewardSpecError, match="did you mean 'constant'"):
        rewards.describe("constantly")


class TestPlugins:
    @pytest.fixture
    def plugin(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """Install a distribution with the given module and entry points, until the test is over."""

        def install(source: str, entry_points: str) -> None:
            (tmp_path / "reward_plugin.py").write_text(source)
            info = tmp_path / "reward_plugin-1.dist-info"
            info.mkdir()
            (info / "METADATA").write_text("Metadata-Version: 2.1\nName: reward-plugin\nVersion: 1\n")
            (info / "entry_points.txt").write_text(f"[ets_agent.rewards]\n{entry_points}\n")
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.setattr(registry, "_plugins_loaded", False)

        yield install
        sys.modules.pop("reward_plugin", None)

    async def test_entry_points_are_found_on_first_use(self, plugin: Any) -> None:
        plugin(
            "from rewards import register, SelfConsistency\n"
            "register('by_decorator')(lambda c: 1.0)\n"
            "def by_entry_point(c):\n    return 2.0\n"
            "class Mine(SelfConsistency):\n    'My votes.'\n"
            "@register('other_name')\ndef decorated(c):\n    return 3.0\n",
            "module = reward_plugin\nby_entry_point = reward_plugin:by_entry_point\nmine = reward_plugin:Mine\n"
            "decorated = reward_plugin:decorated",
        )
        names = {info.name for info in available()}
        assert names == {*BUILT_IN, "by_decorator", "by_entry_point", "mine", "other_name"}
        assert await build("by_entry_point").score("q", [Completion(text="")]) == [2.0]

    @pytest.mark.parametrize(
        ("source", "target", "message"),
        [
            ("raise OSError('no licence')", "reward_plugin:f", "OSError: no licence"),
            ("", "reward_plugin:f", "AttributeError"),
            ("f = 3", "reward_plugin:f", "it is no Reward subclass and no function"),
            ("import no_such_module", "reward_plugin", "ModuleNotFoundError"),
        ],
    )
    def test_a_broken_plugin_warns_and_breaks_nothing(
        self, plugin: Any, source: str, target: str, message: str
    ) -> None:
        plugin(source, f"broken = {target}")
        with pytest.warns(RuntimeWarning, match=f"'broken' .*of reward-plugin.* was not loaded: .*{message}"):
            assert isinstance(build("self_consistency"), SelfConsistency)
        assert isinstance(build("self_consistency"), SelfConsistency)  # and says so only once

    def test_a_plugin_cannot_replace_a_reward(self, plugin: Any) -> None:
        plugin("def f(c):\n    return 1.0", "self_consistency = reward_plugin:f")
        with pytest.warns(RuntimeWarning, match="there is a reward 'self_consistency' already"):
            assert isinstance(build("self_consistency"), SelfConsistency)

    def test_entry_points_are_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[str] = []
        monkeypatch.setattr(registry, "_plugins_loaded", False)
        monkeypatch.setattr(metadata, "entry_points", lambda *, group: calls.append(group) or [])
        available()
        build("self_consistency")
        assert calls == ["ets_agent.rewards"]


class TestCheck:
    def test_what_build_refuses_by_the_signature_is_refused(self) -> None:
        registry.check("self_consistency:accumulate=true")
        for spec, message in (
            ("wisdom", "no reward is called 'wisdom'"),
            ("math_answer", "reward 'math_answer': missing argument 'gold'"),
            ({"name": "choice", "gold": "A", "options": "many"}, "reward 'choice': options='many'"),
        ):
            with pytest.raises(RewardSpecError, match=message):
                registry.check(spec)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "spec",
        [
            "regex:pattern=(",
            {"name": "json_schema", "schema": {"type": "nonsense"}},
            "choice:gold=Z",
            "exact_match:gold=",
            {"name": "code_tests", "test": ""},
        ],
    )
    def test_what_only_a_pure_constructor_finds_is_refused(self, spec: Any) -> None:
        with pytest.raises(RewardSpecError) as checked:
            registry.check(spec)
        with pytest.raises(RewardSpecError) as built:
            build(spec)
        assert str(checked.value) == str(built.value)
        assert checked.value.problem in str(checked.value)
        assert "it takes" not in checked.value.problem

    @pytest.mark.parametrize(("pure", "made"), [(False, 0), (True, 1)])
    def test_other_constructors_are_not_called(self, pure: bool, made: int) -> None:
        count = 0

        @register("holding", pure=pure)
        class Holding(Constant):
            def __init__(self) -> None:
                nonlocal count
                count += 1

        registry.check("holding")
        assert count == made

    def test_what_comes_from_elsewhere_may_be_missing(self) -> None:
        rewards.check("regex:full=true", besides=("pattern",))
        with pytest.raises(RewardSpecError, match="full=5") as caught:
            rewards.check("regex:full=5", besides=("pattern",))
        assert "missing" not in str(caught.value)
        with pytest.raises(RewardSpecError, match="is no regular expression"):
            rewards.check("regex:pattern=(", besides=("pattern",))
        with pytest.raises(RewardSpecError, match="missing argument 'pattern'"):
            rewards.check("regex", besides=("full",))

    def test_pure_is_for_classes(self) -> None:
        with pytest.raises(RewardSpecError, match="pure is for classes"):
            register("f", pure=True)(lambda completion: 0.0)
