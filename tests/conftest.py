"""Fixtures that many tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The time of one example says more about what else the machine is doing; tests that measure time say so.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


_LONGEST = ("test_ray.py", "test_ray_node_loss.py", "test_readme.py", "test_examples.py", "test_sampler.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left with one of them when the others are done."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture
def heap_at_rest() -> Iterator[None]:
    """Keep what other tests left behind out of a test that measures time.

    Late in the suite, one full collection of all those models takes 0.3 s, and stops every thread meanwhile.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session")
def tiny_parts() -> tuple[Any, Any]:
    """Model and tokenizer of the smaller embedded model, loaded once, in float32 on one CPU thread."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from backends.catalog import embedded_path

    torch.set_num_threads(1)
    folder = embedded_path("tiny/qwen3-small")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@pytest.fixture
async def tiny(tiny_parts: tuple[Any, Any]) -> AsyncIterator[Any]:
    """A backend of its own over the shared model."""
    from backends.local import LocalBackend

    async with LocalBackend(*tiny_parts, name="tiny/qwen3-small") as backend:
        yield backend
