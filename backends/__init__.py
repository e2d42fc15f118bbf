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
)
from backends.tokenization import Tokenization

__all__ = [
    "Backend",
    "BackendClosedError",
    "BackendError",
    "BudgetExceededError",
    "Capabilities",
    "CapabilityError",
    "Completion",
    "Confidence",
    "ContextLengthError",
    "EndpointError",
    "FinishReason",
    "Message",
    "MissingExtraError",
    "ModelInfo",
    "Prompt",
    "PromptError",
    "QueueFullError",
    "SamplingParams",
    "State",
    "Tokenization",
    "TokenizerMismatchError",
    "UnknownModelError",
    "available",
    "connect",
    "load",
]
