"""The guided-reasoning tool: what agents ask, what they get, and what an operator lets them ask for."""

from ets_agent.guided.answer import GuidedAnswer
from ets_agent.guided.policy import Policy, RewardOffer
from ets_agent.guided.reasoning import GuidedReasoning, NoPlaceError, Plan
from ets_agent.guided.request import GuidedRequest, RequestError

__all__ = [
    "GuidedAnswer",
    "GuidedReasoning",
    "GuidedRequest",
    "NoPlaceError",
    "Plan",
    "Policy",
    "RequestError",
    "RewardOffer",
]
