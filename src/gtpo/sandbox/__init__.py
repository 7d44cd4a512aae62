"""Running a model's Python code.

`LocalSandbox` runs it on this machine. Its threat model stands at the top of `gtpo.sandbox.local`.
"""

from gtpo.sandbox.base import ExecResult, Level, Limits, Sandbox, Status
from gtpo.sandbox.local import LocalSandbox

__all__ = ["ExecResult", "Level", "Limits", "LocalSandbox", "Sandbox", "Status"]
