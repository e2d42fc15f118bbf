"""Imports litellm: nothing is fetched, the environment stays as it is, and no malicious release is run."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from typing import Any

from backends.errors import BackendError

_MALICIOUS = frozenset({"1.82.7", "1.82.8"})
"""Releases that were not made by litellm's authors: they send credentials away."""
_AT_IMPORT = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_MODE": "PRODUCTION",
}
"""So that importing litellm fetches nothing, and no ``.env`` file of some folder becomes part of the environment."""
_OTHER_MODELS: Mapping[str, Any] = {"model_alias_map": {}, "model_fallbacks": None}
"""Settings by which litellm asks another model than it is told to, and their values where they are not set."""


def _imported() -> Any:
    """Import litellm, unless it is a release that must not run.

    Raises:
        ModuleNotFoundError: It is not installed.
        BackendError: It is a malicious release.
    """
    version = importlib.metadata.version("litellm")
    if version in _MALICIOUS:
        raise BackendError(
            f"litellm {version} is a malicious release that steals credentials; it was not imported. Install another "
            "one with pip install --upgrade litellm, and replace the keys that this machine has"
        )
    with _environment(_AT_IMPORT):
        module: Any = importlib.import_module("litellm")
        # These are read when they are first needed, by which time the environment is the user's again.
        importlib.import_module("litellm.anthropic_beta_headers_manager").get_provider_name("anthropic")
    module.suppress_debug_info = True  # Otherwise it prints advice at each error.
    return module


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables that are not set, for a while."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


litellm = _imported()
"""The module."""


def check_settings() -> None:
    """Refuse settings of litellm's with which a request may go to another model than the one that is named.

    Raises:
        BackendError: One of them is set.
    """
    for name, unset in _OTHER_MODELS.items():
        if getattr(litellm, name, None) not in (None, unset):  # Not shown: there may be keys in it.
            raise BackendError(
                f"litellm.{name} is set, so litellm asks other models than the one that is named; allowed: {unset}"
            )
