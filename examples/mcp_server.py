"""Tools of an MCP server, here one of your own in the same file; each rollout has a session of its own.

python examples/mcp_server.py MODEL        # a folder or Hub id of a model with a chat template; pip install 'gtpo[mcp]'

From the command line: gtpo train --tools "mcp:python examples/mcp_server.py --serve" ...
"""

from __future__ import annotations

import sys
from pathlib import Path

PAIRS = [(a, b) for a in range(12, 20) for b in range(12, 20)]
ROWS = [{"prompt": f"What is {a} * {b}?", "answer": str(a * b)} for a, b in PAIRS]


def serve() -> None:
    """Serve one tool on stdio, written with the MCP SDK 2.x (1.x: `mcp.server.fastmcp.FastMCP`)."""
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


def train(model: str) -> None:
    """Train with the server's tools."""
    from datasets import Dataset

    from gtpo import GTPOConfig, GTPOTrainer

    global trainer
    args = GTPOConfig("runs/mcp_server", max_steps=20, num_generations=8, max_turns=4, logging_steps=1)
    tools = [f"mcp:{sys.executable} {Path(__file__).resolve()} --serve"]  # or MCPTools(...), or "mcp:https://..."
    trainer = GTPOTrainer(model, correct, args, Dataset.from_list(ROWS), tools=tools)
    trainer.train()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve()
    else:
        train(sys.argv[1])
