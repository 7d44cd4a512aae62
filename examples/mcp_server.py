"""Tools of an MCP server, here your own server in the same file; each rollout has its own session.

python examples/mcp_server.py MODEL        # a folder or Hub id of a model with a chat template; pip install 'gtpo[mcp]'

From the command line: gtpo train --tools "mcp:python examples/mcp_server.py --serve" ...
"""

from __future__ import annotations

import sys

PAIRS = [(a, b) for a in range(12, 20) for b in range(12, 20)]
ROWS = [{"prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]


def serve():
    """Serve one tool on stdio with the MCP SDK 2.x (in 1.x the class is `mcp.server.fastmcp.FastMCP`)."""
    from mcp.server.mcpserver import MCPServer

    server = MCPServer("arithmetic")

    @server.tool()
    def multiply(a: int, b: int) -> int:
        """Multiply two integers."""
        return a * b

    server.run("stdio")


def correct(completions, answer, **columns):
    """1 if the last turn holds the answer, else 0."""
    return [float(gold in turns[-1]["content"]) for turns, gold in zip(completions, answer, strict=True)]


if __name__ == "__main__":
    if "--serve" in sys.argv:
        sys.exit(serve())

    from datasets import Dataset

    from gtpo import GTPOConfig, GTPOTrainer

    tools = [f"mcp:{sys.executable} {__file__} --serve"]  # or "mcp:https://...", or gtpo.rollout.MCPTools(...)
    args = GTPOConfig("runs/mcp_server", max_steps=20, num_generations=8, max_turns=4, logging_steps=1)
    trainer = GTPOTrainer(sys.argv[1], correct, args, Dataset.from_list(ROWS), tools=tools)
    trainer.train()
