"""The least that is an MCP server on stdio, without the SDK, so that it starts in no time; and its bad habits.

    tiny_mcp_server.py [--stubborn yes] [--wait-for FILE] [--note FILE]

--stubborn: goes on when its stdin closes, and when it is asked to end; so does a child of its own.
--wait-for: does not answer before the file is there.
--note: appends its process's number, and its child's.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

OPTIONS = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
SLEEP = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
count = listings = 0


def tool(name: str, **properties: object) -> dict[str, object]:
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    return {"name": name, "description": f"{name}.", "inputSchema": schema}


TOOLS = [
    tool("count"),
    tool("die"),
    tool("hang"),
    tool("picture"),
    tool("nothing"),
    tool("long"),
    tool("echo", text={"type": "string"}),
]


def called(name: str, arguments: dict[str, str]) -> dict[str, object] | None:
    global count
    if name == "die":
        print("so long", file=sys.stderr, flush=True)
        os._exit(1)
    if name == "hang":
        time.sleep(600)
    count += 1
    if name == "picture":
        link = {"type": "resource_link", "uri": "file:///x", "name": "x"}
        note = {"type": "resource", "resource": {"uri": "file:///y", "text": "a note"}}
        return {"content": [{"type": "image", "mimeType": "image/png", "data": "AA=="}, link, note]}
    if name == "long":
        return {"content": [{"type": "text", "text": " ".join(map(str, range(20000)))}]}
    if name == "nothing":
        return {"content": [], "structuredContent": {"listings": listings}}
    return {"content": [{"type": "text", "text": arguments.get("text", f"{count} in {os.getpid()}")}]}


def answer(method: str, params: dict[str, object]) -> dict[str, object] | None:
    global listings
    if method == "initialize":
        about = {"name": "tiny", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":  # in two pages
        listings += 1
        at = int(str(params.get("cursor") or 0))
        return {"tools": TOOLS[at : at + 4], **({"nextCursor": "4"} if at == 0 else {})}
    if method == "tools/call":
        return called(str(params["name"]), params.get("arguments") or {})
    return {} if method == "ping" else None


def main() -> None:
    numbers = [os.getpid()]
    if "--stubborn" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        numbers.append(subprocess.Popen([sys.executable, "-c", SLEEP]).pid)
    if "--note" in OPTIONS:
        with open(OPTIONS["--note"], "a") as file:
            file.write("".join(f"{number}\n" for number in numbers))
    while "--wait-for" in OPTIONS and not Path(OPTIONS["--wait-for"]).exists():
        time.sleep(0.02)
    for line in sys.stdin:
        asked = json.loads(line)
        if "id" not in asked:
            continue
        result = answer(asked["method"], asked.get("params") or {})
        error = {"code": -32601, "message": f"no method {asked['method']}"}
        told = {"error": error} if result is None else {"result": result}
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], **told}), flush=True)
    while "--stubborn" in OPTIONS:
        time.sleep(600)


if __name__ == "__main__":
    main()
