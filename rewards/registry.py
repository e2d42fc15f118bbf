"""Rewards by name: register them, list them, build them from a specification."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import re
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from rewards import _arguments
from rewards._arguments import Parameters, RewardParameter
from rewards.base import Reward
from rewards.errors import RewardSpecError
from rewards.functions import DEFAULT_TIMEOUT, FunctionReward, GroupFunctionReward, function_name

RewardSpec: TypeAlias = Reward | str | Mapping[str, Any] | Callable[..., Any]
"""What `build` makes a reward from."""

ENTRY_POINTS = "ets_agent.rewards"
"""The entry-point group in which other distributions offer rewards."""

_T = TypeVar("_T", bound=Callable[..., Any])
_NAME = re.compile(r"[^\W\d][\w.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardInfo:
    """One registered reward.

    Attributes:
        name: What `build` takes.
        summary: What it rewards: the first line of its docstring.
        parameters: What it takes.
        description: The rest of its docstring, and what that of its constructor says of the parameters.
    """

    name: str
    summary: str
    parameters: tuple[RewardParameter, ...]
    description: str = ""


@dataclass(frozen=True, slots=True)
class _Entry:
    name: str
    source: Callable[..., Any]
    group: bool = False
    timeout: float | None = DEFAULT_TIMEOUT
    process: bool = False
    pure: bool = False

    @property
    def is_class(self) -> bool:
        return isinstance(self.source, type)

    @property
    def parameters(self) -> Parameters:
        return (
            Parameters.of_constructor(self.source)
            if isinstance(self.source, type)
            else Parameters.of_judge(self.source)
        )

    @property
    def info(self) -> RewardInfo:
        summary, _, rest = _docstring(self.source).partition("\n")
        constructor = _docstring(self.source.__init__) if self.is_class else ""
        arguments = constructor[constructor.find("Args:") :] if "Args:" in constructor else ""
        return RewardInfo(
            name=self.name,
            summary=summary,
            parameters=self.parameters.describe(),
            description="\n\n".join(filter(None, (rest.strip(), arguments.strip()))),
        )

    def build(self, arguments: Mapping[str, Any]) -> Reward:
        with self._named_in_errors():
            checked = self.parameters.check(arguments)
            return self.source(**checked) if self.is_class else self.wrap(checked)

    def check(self, arguments: Mapping[str, Any], besides: Collection[str]) -> None:
        with self._named_in_errors():
            parameters = self.parameters
            checked = parameters.check(arguments, besides=besides)
            whole = all(each.name in checked for each in parameters.describe() if each.required)
            if self.pure and whole:
                self.source(**checked)

    @contextlib.contextmanager
    def _named_in_errors(self) -> Iterator[None]:
        try:
            yield
        except (TypeError, ValueError) as error:
            problem = error.problem if isinstance(error, RewardSpecError) else str(error)
            raise RewardSpecError(f"reward {self.name!r}: {error}", problem=problem) from error

    def wrap(self, arguments: Mapping[str, Any]) -> Reward:
        """Return the reward that a function makes."""
        kind = GroupFunctionReward if self.group else FunctionReward
        return kind(self.source, name=self.name, timeout=self.timeout, process=self.process, arguments=arguments)


_registry: dict[str, _Entry] = {}
_lock = threading.Lock()
_plugins_lock = threading.RLock()  # Another one, so that a plugin that is being imported elsewhere can register.
_plugins_loaded = False


def register(
    name: str,
    *,
    group: bool = False,
    timeout: float | None = DEFAULT_TIMEOUT,
    process: bool = False,
    pure: bool = False,
) -> Callable[[_T], _T]:
    """Return a decorator that makes a reward available by name and leaves it as it is.

    It takes a `Reward` subclass, whose constructor's parameters become the arguments of a specification, or a function,
    sync or async, of one completion: ``f(completion) -> float | None``. A function gets the prompt, too, if it has a
    parameter ``prompt``; its keyword-only parameters become the arguments of a specification. See `rewards.functions`.

    Args:
        name: Letters, digits, ``_``, ``.`` and ``-``, beginning with a letter.
        group: The function takes the list of all completions and returns a list.
        timeout: Seconds that one call of the function may take, None for no limit.
        process: Whether the function runs in a process of its own, which is killed when it takes too long. A thread,
            the default for sync functions, can only be left behind then.
        pure: Of a class, that its constructor looks at its arguments and takes nothing that `Reward.aclose` would have
            to give back. `check` calls it then, and so finds wrong what it refuses.

    Raises:
        RewardSpecError: The name is not usable or belongs to another reward, or the object is no reward.
    """
    if not _NAME.fullmatch(name):
        raise RewardSpecError(f"{name!r} is no name for a reward: use letters, digits, '_', '.' and '-'")

    def decorate(source: _T) -> _T:
        entry = _Entry(name, source, group, timeout, process, pure)
        if isinstance(source, type):
            if not issubclass(source, Reward):
                raise RewardSpecError(f"{source.__name__} cannot be reward {name!r}: it is no subclass of Reward")
            if entry != _Entry(name, source, pure=pure):
                raise RewardSpecError(f"group, timeout and process are for functions, not for {source.__name__}")
        elif not callable(source):
            raise RewardSpecError(f"{source!r:.80} cannot be reward {name!r}: it is no Reward subclass and no function")
        elif pure:
            raise RewardSpecError("pure is for classes: a function is called when there is something to judge")
        else:
            entry.wrap({})  # refuses what cannot be called with one argument
            try:
                _ = entry.parameters
            except (TypeError, ValueError) as error:
                raise RewardSpecError(f"{source!r:.80} cannot be reward {name!r}: {error}") from error
        with _lock:
            known = _registry.get(name)
            if known is not None and known.source is not source:
                raise RewardSpecError(f"there is a reward {name!r} already: {known.source!r}")
            _registry[name] = entry
            if isinstance(source, type) and issubclass(source, Reward):
                source.name = name
        return source

    return decorate


def build(spec: RewardSpec) -> Reward:
    """Return the reward that a specification describes.

    Args:
        spec: A reward, returned as it is; a function of one completion (or a registered one of a group) or a `Reward`
            subclass; ``"name"`` or ``"name:key=value,key=value"``, where values are JSON literals or else text, as in
            ``"math_answer:gold=42"``; or a mapping ``{"name": …, **arguments}``, as it is or as JSON text.

    Raises:
        RewardSpecError: There is no such reward, or it does not take these arguments. The message says what there is.
    """
    if isinstance(spec, Reward):
        return spec
    if isinstance(spec, str | Mapping):
        name, arguments = parse(spec)
        return _find(name).build(arguments)
    if isinstance(spec, type):
        if issubclass(spec, Reward):
            return _Entry(spec.name or spec.__name__, spec).build({})
    elif callable(spec):
        with _lock:
            known = next((entry for entry in _registry.values() if entry.source is spec), None)
        return (known or _Entry(function_name(spec), spec)).build({})
    raise RewardSpecError(
        f"a reward is given as a name, a mapping, a Reward or a function of one completion, not as {spec!r:.80}"
    )


def check(spec: str | Mapping[str, Any], *, besides: Collection[str] = ()) -> None:
    """Refuse a specification by name that `build` would refuse, as far as that can be told without making the reward.

    A reward is made for a run, and closed after it. So this looks at the name, and at the arguments by the signature;
    only constructors of classes that are registered as ``pure`` are called.

    Args:
        spec: The specification.
        besides: Names of arguments that are still to come from elsewhere, so that they may be missing. Where a required
            one is, no constructor is called.

    Raises:
        RewardSpecError: There is no such reward, or it does not take these arguments. The message says what there is.
    """
    name, arguments = parse(spec)
    _find(name).check(arguments, besides)


def parse(spec: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments in a specification, neither of them checked yet.

    Arguments in a text stay as `build` takes them, which is not in every case a plain value.

    Raises:
        RewardSpecError: It is no specification.
    """
    if isinstance(spec, str) and spec.lstrip().startswith("{"):
        try:
            spec = json.loads(spec)
        except (ValueError, RecursionError) as error:
            raise RewardSpecError(f"the reward {spec!r:.80} begins like a JSON object but is none: {error}") from error
    if isinstance(spec, str):
        name, colon, text = spec.partition(":")
        name = name.strip()
        try:
            return name, _arguments.parse(text) if colon else {}
        except RewardSpecError as error:
            raise RewardSpecError(f"reward {name!r}: {error}") from None
    arguments = dict(spec)
    name = arguments.pop("name", None)
    if not isinstance(name, str):
        raise RewardSpecError(f"a reward given as a mapping needs its 'name' as text, in {dict(spec)!r:.200}")
    return name, arguments


def argument_schemas(name: str) -> dict[str, dict[str, Any]]:
    """Return the JSON schemas of a reward's arguments, by name, as far as their types can be written in JSON.

    Each has the argument's ``description`` and ``default``, where there are any; one without default must be given.
    A default that JSON cannot hold is null.

    Raises:
        RewardSpecError: No reward is called so.
    """
    entry = _find(name)
    return entry.parameters.schemas(entry.info.description)


def available() -> list[RewardInfo]:
    """Return all registered rewards, those of plugins included, by name."""
    _load_plugins()
    with _lock:
        entries = sorted(_registry.values(), key=lambda entry: entry.name)
    return [entry.info for entry in entries]


def describe(name: str) -> RewardInfo:
    """Return what there is to know of one registered reward.

    Raises:
        RewardSpecError: There is none of this name.
    """
    return _find(name).info


def _find(name: str) -> _Entry:
    _load_plugins()
    with _lock:
        if name in _registry:
            return _registry[name]
        names = sorted(_registry)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise RewardSpecError(f"no reward is called {name!r}{hint} Registered: {', '.join(names)}")


def _docstring(source: Callable[..., Any]) -> str:
    # Not `inspect.getdoc`, which would find the docstring of a base class.
    return inspect.cleandoc(getattr(source, "__doc__", None) or "")


def _load_plugins() -> None:
    """Load the entry points once. A plugin that fails is named in a warning and otherwise as if it were not there."""
    global _plugins_loaded
    failures: list[str] = []
    with _plugins_lock:
        if _plugins_loaded:
            return
        _plugins_loaded = True
        from importlib import metadata

        for point in metadata.entry_points(group=ENTRY_POINTS):
            try:
                plugin = point.load()
                if not inspect.ismodule(plugin) and all(
                    entry.source is not plugin for entry in list(_registry.values())
                ):
                    register(point.name)(plugin)
            except Exception as error:
                origin = f"{point.value} of {point.dist.name}" if point.dist else point.value
                failures.append(
                    f"reward plugin {point.name!r} ({origin}) was not loaded: {type(error).__name__}: {error}"
                )
    for failure in failures:
        warnings.warn(failure, RuntimeWarning, stacklevel=4)
