"""Running a model's Python code.

`LocalSandbox` runs it on this machine; its threat model stands at the top of `gtpo.sandbox.local`.
`SandboxFusionSandbox` sends it to a server of SandboxFusion's HTTP API.
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
