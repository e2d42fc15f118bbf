"""A transformers checkpoint with a head for classification: from prompts and responses to scores. Imports torch."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Self

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from backends import Message, Prompt
from backends.local.loading import choose_device, choose_dtype, context_length
from rewards.errors import RewardError

_NO_LIMIT = 10**6
"""From which on what a tokenizer says of its longest text means that it does not know."""


@dataclass(frozen=True, slots=True)
class Input:
    """One sequence for the model.

    Attributes:
        token_ids: Its tokens.
        type_ids: Which of two texts each of them belongs to, for models that ask; otherwise empty.
        places: The tokens at which a model for token classification is read.
    """

    token_ids: tuple[int, ...]
    type_ids: tuple[int, ...] = ()
    places: tuple[int, ...] = ()


class ScoringModel:
    """A model for sequence or token classification, with its tokenizer.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        label: Of several outputs, the one whose probability is the score; None where the only output is.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, label: int | None) -> None:
        """Look at what the model can read."""
        self._model = model
        self._tokenizer = tokenizer
        self._label = label
        self.by_token = _by_token(model.config)
        """Whether it scores tokens."""
        limits = [context_length(model), tokenizer.model_max_length]
        self._limit = min([limit for limit in limits if limit and 0 < limit < _NO_LIMIT], default=None)

    @classmethod
    def load(cls, source: str, *, label: int | str | None, by_token: bool, device: str, dtype: str) -> Self:
        """Load a checkpoint from the hub or a folder.

        Args:
            source: Hub id or folder.
            label: Which label means good, by name or number; None for models with one output.
            by_token: Whether a model that scores tokens can be used.
            device: As `backends.local.loading.choose_device` takes it.
            dtype: As `backends.local.loading.choose_dtype` takes it.

        Raises:
            RewardError: It is no reward model, or the label is none of its labels.
            Exception: There is no checkpoint, or it cannot be loaded.
        """
        config = AutoConfig.from_pretrained(source)
        if _by_token(config) and not by_token:
            raise RewardError("it scores tokens, so it needs kind='process'")
        auto = AutoModelForTokenClassification if _by_token(config) else AutoModelForSequenceClassification
        number = _label(config, label)
        target = choose_device(device)
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, report = auto.from_pretrained(source, dtype=choose_dtype(dtype, target), output_loading_info=True)
        if report["missing_keys"]:
            missing = ", ".join(sorted(report["missing_keys"]))
            raise RewardError(f"it was not trained as a reward model: the checkpoint lacks {missing}")
        model.config.use_cache = False  # Nothing is generated.
        torch.nn.Module.to(model, target)
        return cls(model.train(False), tokenizer, number)

    def whole(self, prompt: Prompt, response: str) -> Input:
        """Return a response as a model for sequence classification reads it.

        Raises:
            RewardError: It is too long.
        """
        if self._tokenizer.chat_template:
            messages = [*_messages(prompt), {"role": "assistant", "content": response}]
            encoded = self._tokenizer(self._render(messages), add_special_tokens=False)
        else:
            encoded = self._tokenizer(_text(prompt), response)
        return self._input(encoded)

    def stepwise(self, prompt: Prompt, steps: Sequence[str], marker: str) -> Input:
        """Return steps, each with a marker behind it, as a model for token classification reads them.

        Raises:
            RewardError: They are too long.
        """
        templated = bool(self._tokenizer.chat_template)
        # The response is not rendered: a template may change white space at its end, and so move the last marker.
        before = self._render(_messages(prompt), add_generation_prompt=True) if templated else _text(prompt)
        text = before + "".join(step + marker for step in steps)
        encoded = self._tokenizer(text, add_special_tokens=not templated, return_offsets_mapping=True)
        tokens = [(start, place) for place, (start, end) in enumerate(encoded["offset_mapping"]) if end > start]
        starts = [start for start, _ in tokens]
        ends = accumulate((len(step) + len(marker) for step in steps), initial=len(before))
        # The token that holds the last character of a marker is the last one that starts before the marker's end.
        return self._input(encoded, [tokens[bisect_left(starts, end) - 1][1] for end in list(ends)[1:]])

    def scores(self, inputs: Sequence[Input]) -> list[list[float]]:
        """Return for each sequence the score of the whole, or those at its places, from one batch."""
        with torch.inference_mode():
            logits = self._forward(inputs).float()
            values = logits[..., 0] if self._label is None else logits.softmax(-1)[..., self._label]
        table = values.cpu()
        if self.by_token:
            return [table[row, list(given.places)].tolist() for row, given in enumerate(inputs)]
        return [[value] for value in table.tolist()]

    def _forward(self, inputs: Sequence[Input]) -> torch.Tensor:
        width = max(len(given.token_ids) for given in inputs)
        config = self._model.config.get_text_config()
        configured = config.pad_token_id
        # Models without a cls token read the last token that is not padding. A checkpoint that does not say what that
        # is was trained without, so padding must be a token that occurs nowhere, or a real one would be passed over.
        pad = configured
        if pad is None or pad < 0:
            used = {token for given in inputs for token in given.token_ids}
            pad = next(token for token in range(len(used) + 1) if token not in used)

        def padded(rows: Sequence[Sequence[int]], filler: int) -> torch.Tensor:
            full = [[*row, *[filler] * (width - len(row))] for row in rows]
            return torch.tensor(full, device=self._model.device)

        arguments: dict[str, Any] = {
            "input_ids": padded([given.token_ids for given in inputs], pad),
            "attention_mask": padded([[1] * len(given.token_ids) for given in inputs], 0),
        }
        if inputs[0].type_ids:
            arguments["token_type_ids"] = padded([given.type_ids for given in inputs], 0)
        config.pad_token_id = pad
        try:
            logits: torch.Tensor = self._model(**arguments).logits
        finally:
            config.pad_token_id = configured
        return logits

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        return str(
            self._tokenizer.apply_chat_template([dict(message) for message in messages], tokenize=False, **options)
        )

    def _input(self, encoded: Any, places: Sequence[int] = ()) -> Input:
        token_ids = tuple(encoded["input_ids"])
        if self._limit is not None and len(token_ids) > self._limit:
            raise RewardError(f"prompt and response have {len(token_ids)} tokens, the reward model reads {self._limit}")
        if not token_ids:
            raise RewardError("prompt and response have no tokens")
        return Input(token_ids, tuple(encoded.get("token_type_ids", ())), tuple(places))


def _by_token(config: Any) -> bool:
    return any(name.endswith("ForTokenClassification") for name in config.architectures or ())


def _label(config: Any, label: int | str | None) -> int | None:
    """Return the number of the output to read, None where there is only one.

    Raises:
        RewardError: The label is missing, or none.
    """
    names = {int(number): str(name) for number, name in config.id2label.items()}
    if len(names) == 1 and label is None:
        return None
    listed = ", ".join(f"{number} ({name})" for number, name in names.items())
    if len(names) == 1:
        raise RewardError("it has one output, which is the score, so it takes no label")
    numbers = [number for number, name in names.items() if label in (number, name)]
    if isinstance(label, bool) or len(numbers) != 1:
        given = "which label means good is not said" if label is None else f"it has no label {label!r}"
        raise RewardError(f"{given}; there are: {listed}")
    return numbers[0]


def _messages(prompt: Prompt) -> Sequence[Message]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def _text(prompt: Prompt) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(message["content"] for message in prompt)
