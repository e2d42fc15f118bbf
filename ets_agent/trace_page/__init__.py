"""A run as one page that needs nothing else: no network, no server; it shows what the model wrote and never runs it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib import resources

from ets_agent.trace_page._data import page_data
from ets_agent.traces import Trace

MARK = "<!-- a run of ets-agent -->"
"""Stands near the beginning of every page, by which a page can be told from another file."""

_SCRIPTS = ("elements.js", "head.js", "steps.js", "page.js")


def render(trace: Trace) -> str:
    """Return the page of a run, a complete HTML document.

    Its policy lets the browser run the page's own script and nothing else, and load nothing at all.
    """
    style, script = _part("style.css"), "".join(map(_part, _SCRIPTS))
    parts = {
        "mark": MARK,
        "policy": "; ".join(
            [
                "default-src 'none'",
                f"script-src '{_hash(script)}'",
                f"style-src '{_hash(style)}'",
                "base-uri 'none'",
                "form-action 'none'",
            ]
        ),
        "style": style,
        "data": _as_script(page_data(trace)),
        "script": script,
    }
    # One pass, so that nothing inside of a part is taken for a place to put another.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _part("page.html"))


def _part(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Return the hash by which a content security policy knows an element."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _as_script(data: object) -> str:
    """Return JSON that cannot end, or open, an element, wherever its texts come from.

    All but ASCII is escaped, the line separators of JavaScript and halves of surrogate pairs included.
    """
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")
