"""The options of MCP servers, and how a server is named in `--tools`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from gtpo._http import bearer_headers, key_for
from gtpo.errors import ConfigError

if TYPE_CHECKING:
    from gtpo.rollout.mcp.tools import MCPTools

PREFIX = "mcp:"
_CHOSEN = re.compile(r"(.*)#([\w.-]+(?:\+[\w.-]+)*)", re.DOTALL)


@dataclass
class MCPConfig:
    """MCP servers that `tools` names."""

    mcp_session: Literal["rollout", "shared"] = field(
        default="rollout",
        metadata={
            "help": "MCP: rollout (one session per rollout; for a command, one process) or shared (one session per "
            "process of gtpo, for servers that keep no state)."
        },
    )
    mcp_connect_s: float = field(
        default=30.0, metadata={"help": "MCP: seconds for a server to start and list its tools, above 0."}
    )
    mcp_call_s: float = field(
        default=30.0, metadata={"help": "MCP: time limit per call, in wall-clock seconds, above 0."}
    )
    mcp_env: list[str] = field(
        default_factory=list,
        metadata={
            "help": "MCP: names of environment variables to pass to servers that are commands, besides HOME, PATH "
            "and such."
        },
    )
    mcp_key_variable: str | None = field(
        default=None,
        metadata={
            "help": "MCP: name of the environment variable with the API key of servers that are URLs, which is sent "
            "as a bearer token."
        },
    )

    def check_mcp(self) -> None:
        """Check that the options can be used.

        Raises:
            ConfigError: an option is out of range.
        """
        if self.mcp_session not in ("rollout", "shared"):
            raise ConfigError(f"mcp_session must be rollout or shared, got {self.mcp_session!r}")
        for name in ("mcp_connect_s", "mcp_call_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be above 0 seconds, got {getattr(self, name)}")

    def mcp_tools(self, name: str) -> MCPTools:
        """Connect to a server, and return its tools.

        Args:
            name: as in `tools`: `mcp:COMMAND` or `mcp:URL`, followed by `#TOOL+TOOL` for some of its tools.

        Raises:
            ConfigError: the server can't be reached, or has no such tools; says why.
        """
        from gtpo.rollout.mcp.tools import MCPTools

        address, only = split_name(name)
        if missing := [variable for variable in self.mcp_env if variable not in os.environ]:
            raise ConfigError(
                f"mcp_env: the environment variable {missing[0]} is not set; set it for {name}, or leave it out"
            )
        headers = {}
        if self.mcp_key_variable and address.startswith(("http://", "https://")):
            key = key_for(address, self.mcp_key_variable, option="mcp_key_variable")
            headers = bearer_headers(address, key, option="mcp_key_variable")
        return MCPTools(
            address,
            only=only,
            session=self.mcp_session,
            connect_s=self.mcp_connect_s,
            call_s=self.mcp_call_s,
            env={variable: os.environ[variable] for variable in self.mcp_env},
            headers=headers,
        )


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """The server's address and the chosen tools; an empty tuple for all."""
    address = name.removeprefix(PREFIX).strip()
    match = _CHOSEN.fullmatch(address)
    return (match[1].strip(), tuple(match[2].split("+"))) if match else (address, ())


def split_tools(text: str) -> list[str]:
    """Split `tools` at its commas; a comma in quotes belongs to a command."""
    return [part.strip() for part in re.findall(r"""(?:"[^"]*"|'[^']*'|[^,])+""", text) if part.strip()]
