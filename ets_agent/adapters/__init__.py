"""`GuidedReasoning` as a tool of agent frameworks: one module for each, which imports its framework when it is used.

Each has a function ``tool(reasoning, *, name=None, description=None)``, which returns what its framework takes as a
tool. The schema is that of the operator's policy; what a model asks wrongly, it is told, with what is allowed.

- `openai_tools`: the schema as a dict, for OpenAI's APIs, litellm and all that speak them; `dispatch` answers calls.
- `openai_agents`: an `agents.FunctionTool`.
- `pydantic_ai`: a `pydantic_ai.Tool`.
- `langchain`: a `langchain_core.tools.StructuredTool`, for LangGraph, too.

For any other framework, `ask` answers what a model gave as the tool's arguments, and `ask_sync` where there is no event
loop.
"""

from ets_agent.adapters._reply import ask, ask_sync

__all__ = ["ask", "ask_sync"]
