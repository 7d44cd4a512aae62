"""Sandboxes that run a model's Python code.

`LocalSandbox` runs it on this machine; the module `gtpo.sandbox.local` documents its threat model.
`SandboxFusionSandbox` sends it to a server with SandboxFusion's HTTP API.
"""

from gtpo.sandbox.base import ExecResult, Limits, Sandbox, Session, Status
from gtpo.sandbox.levels import Level
from gtpo.sandbox.local import LocalSandbox, Require
from gtpo.sandbox.remote import SandboxFusionSandbox

__all__ = [
    "ExecResult",
    "Level",
    "Limits",
    "LocalSandbox",
    "Require",
    "Sandbox",
    "SandboxFusionSandbox",
    "Session",
    "Status",
]
