"""``ets solve``: answer one question."""

from __future__ import annotations

import sys
from contextlib import aclosing, nullcontext
from typing import Annotated

import typer

import rewards
from backends import Backend, Prompt, check_prompt
from ets_agent._proposal import check_proposal_settings
from ets_agent.cli import errors, inputs, options
from ets_agent.cli.output import emit
from ets_agent.cli.recording import Recorder
from ets_agent.cli.session import session
from ets_agent.cli.solve_progress import SolveProgress
from ets_agent.config import ETSConfig
from ets_agent.results import Finished, Result
from ets_agent.sampler import ETS
from ets_agent.traces import check_new
from rewards import Reward


def solve_command(
    context: typer.Context,
    question: Annotated[str, typer.Argument(help="The question; - reads it from stdin.", show_default=False)],
    model: options.Model = options.DEFAULT_MODEL,
    proposal: options.Proposal = None,
    reward: options.RewardSpec = options.DEFAULT_REWARD,
    num_candidates: options.NumCandidates = None,
    num_rollouts: options.NumRollouts = None,
    num_steps: options.NumSteps = None,
    block_size: options.BlockSize = None,
    kl_coef: options.KlCoef = None,
    num_chains: options.NumChains = None,
    estimator: options.Estimator = None,
    temperature: options.Temperature = None,
    top_p: options.TopP = None,
    top_k: options.TopK = None,
    proposal_temperature: options.ProposalTemperature = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    seed: options.Seed = None,
    timeout: options.Timeout = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    raw: options.Raw = False,
    trace: options.TraceFile = None,
    config_file: options.Config = None,
    as_json: options.Json = False,
    progress: options.Progress = None,
    debug: options.Debug = False,
) -> None:
    """Answer a question with guided sampling; the answer alone goes to stdout."""
    with session(debug=debug) as running:
        # All that can be wrong with the command itself is found before a model is loaded for it.
        config = options.config_from(context)
        check_proposal_settings(config, proposal=proposal is not None)
        text = inputs.read_question(question)
        check_prompt(text)
        judge = rewards.build(reward)
        if trace is not None:
            check_new(trace)
        shown = progress if progress is not None else sys.stderr.isatty()
        with SolveProgress(enabled=shown) as display:
            backend, helper = inputs.load_models(model, proposal, device=device, dtype=dtype, note=display.note)
            prompt = inputs.prompt_from(text, backend, helper, raw=raw)
            recorder = Recorder(trace, prompt, reward=judge.name)
            result = running.run(
                _solve(
                    prompt,
                    backend=backend,
                    proposal=helper,
                    reward=judge,
                    config=config,
                    display=display,
                    recorder=recorder,
                )
            )
        for message in [*result.warnings, *([recorder.problem] if recorder.problem is not None else [])]:
            errors.warn(message)
        nothing = result.cut_short and not result.text
        if result.cut_short:
            limit = f"after {config.timeout:g} s" if result.finish_reason == "timeout" else "by the token budget"
            best = "there is no answer yet" if nothing else "this is the best answer so far"
            errors.warn(f"cut short {limit}; {best}")
        if as_json:
            emit(result.model_dump_json(indent=2))
        elif not nothing:
            emit(result.answer if result.answer is not None else result.text)
        if nothing:
            raise typer.Exit(1)


async def _solve(
    prompt: Prompt,
    *,
    backend: Backend,
    proposal: Backend | None,
    reward: Reward,
    config: ETSConfig,
    display: SolveProgress,
    recorder: Recorder,
) -> Result:
    result: Result | None = None
    async with (
        backend,
        proposal or nullcontext(),
        aclosing(reward),
        ETS(backend, reward, proposal, config=config) as ets,
    ):
        with recorder:
            async for event in ets.stream(prompt):
                recorder.write(event)
                display.show(event)
                if isinstance(event, Finished):
                    result = event.result
    assert result is not None  # every run ends with `Finished`
    return result
