"""Guided reasoning for LLM agents: ETS samples the answer that reinforcement learning would have converged to.

    from ets_agent import ETS

    ets = ETS("tiny/qwen3", "self_consistency", max_tokens=64)
    result = await ets.complete("…")

What is listed in ``__all__`` is the public interface; importing it loads no model library.
"""

from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError, RunningLoopError
from ets_agent.guided import GuidedAnswer, GuidedReasoning, GuidedRequest, Policy, RequestError, RewardOffer
from ets_agent.results import (
    BlockCommitted,
    CandidatesWeighed,
    Diagnostics,
    Event,
    Finished,
    Result,
    RolloutTrace,
    StepStarted,
    StepTrace,
    Usage,
    Warned,
)
from ets_agent.sampler import ETS

__version__ = "0.1.0"

__all__ = [
    "ETS",
    "BlockCommitted",
    "CandidatesWeighed",
    "ConfigError",
    "Diagnostics",
    "ETSConfig",
    "Event",
    "Finished",
    "GuidedAnswer",
    "GuidedReasoning",
    "GuidedRequest",
    "Policy",
    "RequestError",
    "Result",
    "RewardOffer",
    "RolloutTrace",
    "RunningLoopError",
    "StepStarted",
    "StepTrace",
    "Usage",
    "Warned",
    "__version__",
]
