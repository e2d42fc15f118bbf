"""What a proposal must be for its importance weights to be right; checked before anything is drawn."""

from __future__ import annotations

from backends import Backend, CapabilityError, SamplingParams, TokenizerMismatchError
from ets_agent.config import ETSConfig
from ets_agent.errors import ConfigError


def check_proposal_settings(config: ETSConfig, *, proposal: bool) -> None:
    """Refuse settings under which rollouts of a proposal could not stand for those of the reference.

    The proposal must be able to draw whatever the reference can, so it must not be truncated. The reference may be:
    what it cannot draw gets weight 0.

    Raises:
        ConfigError: The proposal would be truncated; or a setting is about a proposal, and there is none.
    """
    if not proposal:
        for name in ("proposal_temperature", "estimator"):
            value, default = getattr(config, name), ETSConfig.model_fields[name].default
            if value != default:
                raise ConfigError(
                    f"{name} is {value}, but there is no proposal: give one, or leave {name} out", setting=name
                )
        return
    if config.proposal_sampling.truncated:
        raise ConfigError(
            f"a proposal must be able to draw every token, but temperature {config.temperature:g}, "
            f"top_p {config.top_p:g} and top_k {config.top_k} would truncate it like the reference; allowed: "
            "temperature above 0, top_p 1 and top_k 0 for both, or a proposal_temperature, at which the proposal "
            "samples untruncated while the reference keeps its settings"
        )


def check_weighing(config: ETSConfig, reference: Backend, proposal: Backend) -> None:
    """Refuse settings under which the models' log-probabilities are not those of what they sample.

    A server may tell them for temperature 1 alone, whatever it samples at; their ratio would be no importance weight.

    Raises:
        backends.CapabilityError: With what to do.
    """
    if not (config.sampling.plain or reference.capabilities.tempered_score):
        raise CapabilityError(
            f"{reference.name} scores given tokens at temperature 1 without truncation only, not at "
            f"{_sampling(config.sampling)}: set temperature 1, top_p 1 and top_k 0 (the proposal may have a "
            "proposal_temperature of its own), take a local reference, or leave the proposal out"
        )
    if not (config.proposal_sampling.plain or proposal.capabilities.tempered_logprobs):
        raise CapabilityError(
            f"{proposal.name} tells the log-probabilities of temperature 1 without truncation, but would sample at "
            f"{_sampling(config.proposal_sampling)}, so its rollouts could not be weighed: set temperature 1, top_p 1 "
            "and top_k 0, or have the server tell those of what it samples (vLLM: --logprobs-mode processed_logprobs)"
        )


def _sampling(params: SamplingParams) -> str:
    return f"temperature {params.temperature:g}, top_p {params.top_p:g}, top_k {params.top_k}"


def check_same_tokens(reference: Backend, proposal: Backend) -> None:
    """Refuse a pair of models between which token ids and log-probabilities cannot be exchanged.

    Raises:
        backends.CapabilityError: One of them lacks something.
        backends.TokenizerMismatchError: They do not have the same tokens.
    """
    if not reference.capabilities.score:
        raise CapabilityError(f"{reference.name} cannot score given tokens, which a reference must with a proposal")
    if not proposal.capabilities.logprobs:
        raise CapabilityError(f"{proposal.name} gives no log-probabilities, so it cannot be a proposal")
    if not proposal.capabilities.full_support:
        raise CapabilityError(f"{proposal.name} cannot draw every token, so it cannot be a proposal")
    mine, theirs = reference.tokenization, proposal.tokenization
    for model, tokenization in ((reference, mine), (proposal, theirs)):
        if tokenization is None:
            raise CapabilityError(f"{model.name} does not tell its tokens, so it cannot be paired with another model")
    assert mine is not None
    assert theirs is not None
    if difference := mine.difference(theirs):
        raise TokenizerMismatchError(
            f"{reference.name} and {proposal.name} do not have the same tokenizer ({difference}), so rollouts of one "
            "cannot be scored by the other; a smaller model of the same family has"
        )
