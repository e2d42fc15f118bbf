"""Rewards r(y, x_0): judge complete responses, for guidance and for evaluation.

    reward = rewards.build("self_consistency")
    scores = await reward.score(prompt, completions)

Importing the package is cheap: no model library, no framework.
"""

from rewards._arguments import RewardParameter
from rewards.answers import canonical, extract_answer
from rewards.base import Reward
from rewards.choice import Choice, extract_choice
from rewards.code import CodeConsistency, CodeTests
from rewards.combination import Clip, Gate, Product, Rescale, WeightedSum
from rewards.confidence import Entropy, LogProb, SelfCertainty
from rewards.equivalence import equivalence_keys
from rewards.errors import RewardError, RewardSpecError, RewardTimeoutError
from rewards.exact_match import ExactMatch
from rewards.json_schema import JSONSchema
from rewards.llm_judge import LLMJudge
from rewards.math_answer import MathAnswer
from rewards.pointwise import PointwiseReward
from rewards.regex import Regex
from rewards.registry import (
    RewardInfo,
    RewardSpec,
    argument_schemas,
    available,
    build,
    check,
    describe,
    parse,
    register,
)
from rewards.reward_model import RewardModel
from rewards.sandbox import SandboxError, SandboxUnavailableError
from rewards.self_consistency import SelfConsistency
from rewards.similarity import Similarity
from rewards.voting import VotingReward

__all__ = [
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
