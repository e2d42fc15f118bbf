"""Language models to sample from: p_ref and p_small behind one protocol.

    backend = backends.load("tiny/qwen3")

Importing the package loads no model and no torch.
"""

from backends.base import (
    Backend,
    Capabilities,
    Completion,
    Confidence,
    FinishReason,
    Message,
    Prompt,
    SamplingParams,
    State,
)
from backends.catalog import ModelInfo, available, connect, load
from backends.contract import (
    BackendContext,
    as_completion,
    check_budget,
    check_continues,
    check_counts,
    check_prompt,
    own_state,
    row_seeds,
)
from backends.errors import (
    BackendClosedError,
    BackendError,
    BudgetExceededError,
    CapabilityError,
    ContextLengthError,
    EndpointError,
    MissingExtraError,
    PromptError,
    QueueFullError,
    TokenizerMismatchError,
    UnknownModelError,
    UnreachableError,
    UnusableDrawError,
)
from backends.limits import Limited, Limiter
from backends.metering import BackendUsage, Metered, TokenBudget
from backends.pool import Pool
from backends.retries import Retrying, RetryPolicy
from backends.telemetry import Traced
from backends.tokenization import Tokenization
from backends.wrapper import BackendWrapper

__all__ = [
    "Backend",
    "BackendClosedError",
    "BackendContext",
    "BackendError",
    "BackendUsage",
    "BackendWrapper",
    "BudgetExceededError",
    "Capabilities",
    "CapabilityError",
    "Completion",
    "Confidence",
    "ContextLengthError",
    "EndpointError",
    "FinishReason",
    "Limited",
    "Limiter",
    "Message",
    "Metered",
    "MissingExtraError",
    "ModelInfo",
    "Pool",
    "Prompt",
    "PromptError",
    "QueueFullError",
    "RetryPolicy",
    "Retrying",
    "SamplingParams",
    "State",
    "TokenBudget",
    "Tokenization",
    "TokenizerMismatchError",
    "Traced",
    "UnknownModelError",
    "UnreachableError",
    "UnusableDrawError",
    "as_completion",
    "available",
    "check_budget",
    "check_continues",
    "check_counts",
    "check_prompt",
    "connect",
    "load",
    "own_state",
    "row_seeds",
]
