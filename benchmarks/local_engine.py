"""Compare the local engine with the naive loop: wall time, and the share of ours outside the model's forward pass.

    python benchmarks/local_engine.py

Both solve the same prompts of 100 tokens with the same settings, M = 8, K = 4, four blocks of 16, in one process and in
turn. The naive loop draws candidates and rollouts with ``model.generate`` on repeated full sequences, as the released
code of the paper does: every call computes prompt and prefix again for every row, finished candidates are rolled out
again, and all rows decode until the longest is done. Unlike that code it keeps to the token budget.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import rewards
from backends import Completion
from backends.catalog import embedded_path
from backends.local import LocalBackend
from ets_agent import ETS, energy
from ets_agent.evaluation import word_problems

M, K, BLOCK, MAX_TOKENS, KL_COEF = 8, 4, 16, 64, 0.1
PROMPT_TOKENS = 100


class ForwardClock:
    """Adds up the time spent in a model's forward pass."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Hook into the model."""
        self.seconds = 0.0
        self._began = 0.0
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._began = time.perf_counter()

    def _end(self, *_: Any) -> None:
        self.seconds += time.perf_counter() - self._began


def prompts(tokenizer: PreTrainedTokenizerBase, count: int) -> list[str]:
    """Return prompts of exactly 100 tokens: a solved problem, then one to solve."""
    found: list[str] = []
    source = word_problems.generate("test", seed=0)
    while len(found) < count:
        example, problem = next(source), next(source)
        text = f"{example.question}\n{example.solution}\n\n{problem.question}"
        if len(tokenizer(text)["input_ids"]) == PROMPT_TOKENS:
            found.append(text)
    return found


async def naive(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, seed: int) -> str:
    """ETS by `generate` on full sequences."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    reward = rewards.build("self_consistency")
    sequence = tokenizer(prompt, return_tensors="pt")["input_ids"]
    start = sequence.shape[1]
    sampling: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}

    def generate(rows: torch.Tensor, tokens: int) -> torch.Tensor:
        mask = torch.ones_like(rows)
        output: torch.Tensor = model.generate(rows, attention_mask=mask, max_new_tokens=tokens, **sampling)
        return output

    def texts(rows: torch.Tensor) -> list[str]:
        return list(tokenizer.batch_decode(rows[:, start:], skip_special_tokens=True))

    for left in range(MAX_TOKENS, 0, -BLOCK):
        candidates = generate(sequence.repeat(M, 1), BLOCK)
        last = left == BLOCK
        complete = candidates if last else generate(candidates.repeat_interleave(K, dim=0), left - BLOCK)
        scores = await reward.score(prompt, [Completion(text=text) for text in texts(complete)])
        table = np.array(scores, dtype=float).reshape(M, -1)
        chosen = energy.select(energy.estimate(table, kl_coef=KL_COEF).weights, rng)
        sequence = candidates[chosen : chosen + 1]
        ended = (sequence[0, start:] == tokenizer.eos_token_id) | (sequence[0, start:] == tokenizer.pad_token_id)
        if ended.any():
            break
    return texts(sequence)[0]


async def measure(count: int, seed: int) -> dict[str, float]:
    """Run both on the same prompts, in turn, and return the figures."""
    folder = embedded_path("tiny/qwen3")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    clock = ForwardClock(model)
    settings = {"num_candidates": M, "num_rollouts": K, "block_size": BLOCK, "max_tokens": MAX_TOKENS}
    texts = prompts(tokenizer, count + 1)
    ours, theirs, inside = [], [], []
    async with LocalBackend(model, tokenizer, name="tiny/qwen3") as backend:
        ets = ETS(backend, "self_consistency", kl_coef=KL_COEF, temperature=1.0, **settings)
        for index, prompt in enumerate(texts):
            clock.seconds, began = 0.0, time.perf_counter()
            await ets.complete(prompt, seed=seed + index)
            elapsed = time.perf_counter() - began
            forward, began = clock.seconds, time.perf_counter()
            await naive(model, tokenizer, prompt, seed + index)
            if index > 0:  # The first pair is the warm-up.
                ours.append(elapsed)
                inside.append(forward)
                theirs.append(time.perf_counter() - began)
    ratios = [slow / fast for slow, fast in zip(theirs, ours, strict=True)]
    return {
        "prompts": count,
        "ours_seconds_median": statistics.median(ours),
        "naive_seconds_median": statistics.median(theirs),
        "ratio_median": statistics.median(ratios),
        "ratio_total": sum(theirs) / sum(ours),
        "outside_forward_share": 1 - sum(inside) / sum(ours),
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--threads", type=int, default=1, help="torch threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.prompts < 1 or arguments.threads < 1:
        parser.error("--prompts and --threads must be at least 1")
    torch.set_num_threads(arguments.threads)
    figures = asyncio.run(measure(arguments.prompts, arguments.seed))
    if arguments.json:
        print(json.dumps(figures, indent=2))
        return
    print(f"M = {M}, K = {K}, blocks of {BLOCK}, {MAX_TOKENS} tokens, {arguments.threads} thread(s)")
    print(f"naive loop   {figures['naive_seconds_median']:.3f} s per completion (median of {arguments.prompts})")
    print(f"this engine  {figures['ours_seconds_median']:.3f} s")
    print(f"ratio        {figures['ratio_median']:.2f} (median of pairs), {figures['ratio_total']:.2f} (totals)")
    print(f"outside the model's forward: {figures['outside_forward_share']:.1%} of our time")


if __name__ == "__main__":
    main()
