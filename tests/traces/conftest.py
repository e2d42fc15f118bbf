"""Pages of runs in a real browser that reports whatever should not have happened."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright, expect

from ets_agent import Result
from ets_agent.trace_page import render
from ets_agent.traces import read_trace, save_trace

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = [
    "--no-sandbox",  # It has no sandbox of its own where the tests run as root.
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]

Show = Callable[..., Awaitable[Page]]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("needs chromium or google-chrome")
    async with async_playwright() as playwright:
        expect.set_options(timeout=60_000)  # Milliseconds; a busy machine may let the browser wait.
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        await chromium.close()


@pytest_asyncio.fixture(loop_scope="module")
async def show(browser: Browser, tmp_path: Path) -> AsyncIterator[Show]:
    """Open the page of a run, given as a result or a file; nothing may be loaded, run or complained about on it."""
    unwanted: list[str] = []
    async with AsyncExitStack() as stack:

        async def show(run: Result | Path, *, prompt: Any = "How many?", width: int = 1200, **options: Any) -> Page:
            file = run if isinstance(run, Path) else tmp_path / "run.jsonl"
            if isinstance(run, Result):
                file.unlink(missing_ok=True)
                save_trace(file, prompt, run, trace_id="7f", reward="self_consistency")
            target = tmp_path / "run.html"
            target.write_text(render(read_trace(file)), encoding="utf-8")
            size = {"width": width, "height": 900}
            context = await stack.enter_async_context(await browser.new_context(viewport=size, **options))
            page = await context.new_page()
            page.on("console", lambda message: unwanted.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: unwanted.append(f"error: {error}"))
            page.on("dialog", lambda dialog: unwanted.append(f"dialog: {dialog.message}"))
            page.on("popup", lambda popup: unwanted.append(f"popup: {popup.url}"))
            page.on(
                "request",
                lambda request: unwanted.append(f"request: {request.url}") if request.url != target.as_uri() else None,
            )
            await page.goto(target.as_uri())
            return page

        yield show
    assert unwanted == []
