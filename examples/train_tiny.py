r"""Train the two embedded models from nothing but generated word problems.

    pip install -e ".[local]"
    python examples/train_tiny.py reference --out clean --steps 6000 --batch-size 32
    python examples/train_tiny.py reference --out backends/models/qwen3 --init clean --steps 600 --batch-size 32 \
        --lr 5e-4 --slips 0.12 --seed 1

The first stage learns to solve problems, the second to slip now and then (``small`` likewise, see the model cards).
Both models are Qwen3 checkpoints in the usual format (safetensors, tokenizer, chat template) that any transformers or
vLLM installation loads, and share one tokenizer. Every batch is drawn fresh from the training split; the loss is on
the solution alone. Half of the prompts are chat messages, half are plain text, so the models answer either. The run is
determined by ``--seed`` on one machine and thread count.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from itertools import islice
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from ets_agent.evaluation import word_problems
from ets_agent.evaluation.word_problems import Problem

END_OF_TEXT, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
SIZES = {
    "reference": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "num_attention_heads": 2},
}
CONTEXT = 1024
TOKENIZER_SEED = 1
VOCABULARY = 512


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with single digits, trained on the training split; the same for both models."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\n| ?[^\s\d]+|\s"), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    corpus = (
        f"user\n{problem.question}\nassistant\n{problem.solution}"
        for problem in islice(word_problems.generate("train", seed=TOKENIZER_SEED), 20_000)
    )
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[END_OF_TEXT, IM_START, IM_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=IM_END, pad_token=END_OF_TEXT, model_max_length=CONTEXT
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(size: str, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Return an untrained model of one of ``SIZES``."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        head_dim=32,
        num_key_value_heads=2 if size == "reference" else 1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.convert_tokens_to_ids(IM_END),
        pad_token_id=tokenizer.convert_tokens_to_ids(END_OF_TEXT),
        dtype="float32",
        **SIZES[size],
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids([IM_END, END_OF_TEXT])
    model.generation_config.pad_token_id = config.pad_token_id
    return model


def with_slips(problem: Problem, rng: random.Random, rate: float) -> str:
    """Return the solution as an inattentive writer would put it down: a step's result may be off, and is carried on."""
    if rate == 0:
        return problem.solution
    carried: dict[int, int] = {}
    lines = []
    result = 0
    for step in problem.steps:
        left, operator, right, _, right_result = step.split()
        a, b = carried.get(int(left), int(left)), carried.get(int(right), int(right))
        result = {"+": a + b, "-": a - b, "*": a * b, "/": a // b}[operator]
        if rng.random() < rate:
            result += rng.choice((-10, -2, -1, 1, 2, 10))
        if result <= 0 or (operator == "/" and a % b):
            return problem.solution  # No sensible story; tell it right.
        carried[int(right_result)] = result
        lines.append(f"{a} {operator} {b} = {result}")
    return "\n".join([*lines, f"#### {result}"])


def encode(
    tokenizer: PreTrainedTokenizerFast, found: list[Problem], rng: random.Random, slips: float
) -> list[tuple[list[int], list[int]]]:
    """Return (prompt ids, solution ids) per problem, as a chat or as plain text with even odds."""
    prompts, solutions = [], []
    for problem in found:
        solution = with_slips(problem, rng, slips)
        if rng.random() < 0.5:
            messages = [{"role": "user", "content": problem.question}]
            prompts.append(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            solutions.append(solution + IM_END)
        else:
            prompts.append(problem.question)
            solutions.append("\n" + solution + END_OF_TEXT)
    return list(zip(tokenizer(prompts)["input_ids"], tokenizer(solutions)["input_ids"], strict=True))


def train(
    size: str,
    *,
    init: Path | None,
    steps: int,
    batch_size: int,
    peak_lr: float,
    slips: float,
    seed: int,
) -> tuple[Qwen3ForCausalLM, PreTrainedTokenizerFast]:
    """Train one model: AdamW, short warm-up, cosine decay to zero."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = train_tokenizer()
    model = build_model(size, tokenizer) if init is None else Qwen3ForCausalLM.from_pretrained(init, dtype="float32")
    model.train()
    print(f"{size}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(tokenizer)} tokens", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
    )
    source = word_problems.generate("train", seed=seed)
    batches: list[list[tuple[list[int], list[int]]]] = []
    seen, running, started = 0, None, time.perf_counter()
    for step in range(steps):
        if not batches:  # Sort within a pool, so that a batch wastes little on padding.
            pool = encode(tokenizer, list(islice(source, batch_size * 16)), rng, slips)
            pool.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
            batches = [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
            rng.shuffle(batches)
        batch = batches.pop()
        width = max(len(prompt) + len(solution) for prompt, solution in batch)
        ids = torch.full((batch_size, width), model.config.pad_token_id)
        labels = torch.full((batch_size, width), -100)
        for row, (prompt, solution) in enumerate(batch):
            end = len(prompt) + len(solution)
            ids[row, :end] = torch.tensor(prompt + solution)
            labels[row, len(prompt) : end] = torch.tensor(solution)
        loss = model(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        seen += ids.numel()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 50 == 0:
            rate = seen / (time.perf_counter() - started)
            print(f"step {step + 1}/{steps}  loss {running:.4f}  {seen / 1e6:.1f} M tokens  {rate:,.0f}/s", flush=True)
    return model, tokenizer


def main() -> None:
    """Train one model and save it as a checkpoint folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--slips", type=float, default=0.0, help="probability that a step's result is off")
    parser.add_argument("--init", type=Path, help="checkpoint folder to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model, tokenizer = train(
        arguments.size,
        init=arguments.init,
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        peak_lr=arguments.lr,
        slips=arguments.slips,
        seed=arguments.seed,
    )
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)
    print(f"saved to {arguments.out}")


if __name__ == "__main__":
    main()
