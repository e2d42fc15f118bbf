"""Call guided reasoning as an agent's host does: start ``ets mcp``, list its tools, call one, and watch its progress.

It runs offline, on the embedded model, which only knows word problems like these.

    pip install -e ".[local,mcp]"
    python examples/mcp_client.py
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from mcp import Client
from mcp.client.stdio import StdioServerParameters
from mcp_types import CallToolResult

from ets_agent import GuidedAnswer

QUESTION = "Olga has 342 marbles. Olga gives 218 to Rosa. Olga finds 117 more. How many marbles does Olga have now?"
ETS = Path(sys.executable).parent / "ets"


async def show(progress: float, total: float | None, message: str | None) -> None:
    """Print where the run is."""
    print(f"  {progress:5.2f} of {'?' if total is None else f'{total:.0f}'}  {message}")


async def ask(question: str, timeout: float) -> CallToolResult:  # noqa: ASYNC109 - the tool keeps it, and answers
    """Ask one question through the tool."""
    async with Client(StdioServerParameters(command=str(ETS), args=["mcp", "--model", "tiny/qwen3"])) as client:
        (tool,) = (await client.list_tools()).tools
        print(f"{tool.name} takes {', '.join(tool.input_schema['properties'])}")
        arguments = {"question": question, "effort": "medium", "timeout": timeout}
        return await client.call_tool(tool.name, arguments, progress_callback=show)


def main() -> None:
    """Ask, and print the answer."""
    parser = argparse.ArgumentParser(description="Call guided reasoning over MCP.")
    parser.add_argument("question", nargs="?", default=QUESTION)
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds (default: %(default)s)")
    options = parser.parse_args()
    result = asyncio.run(ask(options.question, options.timeout))
    if result.is_error:  # The message says what is allowed, so that a model could correct itself.
        sys.exit("\n".join(block.text for block in result.content if block.type == "text"))
    answer = GuidedAnswer.model_validate(result.structured_content)
    confidence = "none" if answer.confidence is None else f"{answer.confidence:.2f}"
    print(f"Answer      {answer.answer}\nConfidence  {confidence}\nCut short   {answer.cut_short}")
    print(f"Working     {' | '.join(answer.text.splitlines())}")


if __name__ == "__main__":
    main()
