"""Tools of servers that speak the Model Context Protocol (MCP), through the official SDK. Needs the extra `mcp`."""

from gtpo.rollout.mcp.options import MCPConfig
from gtpo.rollout.mcp.tools import MCPTool, MCPTools

__all__ = ["MCPConfig", "MCPTool", "MCPTools"]
