"""`gtpo sandbox serve`: the local sandbox for other machines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from gtpo._text import say
from gtpo.commands.arguments import parse
from gtpo.errors import ConfigError
from gtpo.sandbox import LocalSandbox, Require
from gtpo.sandbox.service import SandboxService

LOOPBACK = ("127.0.0.1", "localhost")


@dataclass
class ServeArguments:
    """Where to listen, and what may run."""

    host: str = field(default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 for every one."})
    port: int = field(default=8080, metadata={"help": "Port; 0 takes a free one."})
    max_workers: int | None = field(
        default=None, metadata={"help": "Programs at a time; by default what the local sandbox takes."}
    )
    waiting: int = field(default=256, metadata={"help": "Requests that may wait; more are asked to come back."})
    sandbox_require: Require = field(
        default="landlock", metadata={"help": "Weakest isolation that the sandbox may start with."}
    )
    key_variable: str = field(
        default="GTPO_SANDBOX_KEY", metadata={"help": "Environment variable with the key that requests must carry."}
    )
    open_to_all: bool = field(
        default=False, metadata={"help": "Serve other machines without a key: whoever reaches the port runs programs."}
    )


def main(argv: Sequence[str]) -> int:
    """Parse and serve until interrupted."""
    if list(argv[:1]) != ["serve"]:
        raise ConfigError("the one thing to do is: gtpo sandbox serve [--OPTION VALUE ...]")
    (args,) = parse((ServeArguments,), argv[1:], prog="gtpo sandbox serve", about="Offer the local sandbox over HTTP.")
    key = os.environ.get(args.key_variable) or None
    if args.host not in LOOPBACK and key is None and not args.open_to_all:
        raise ConfigError(
            f"--host {args.host} lets other machines in: set {args.key_variable} to a key here and where training "
            "runs, or --open_to_all true if the network itself is closed"
        )
    sandbox = LocalSandbox(max_workers=args.max_workers, require=args.sandbox_require)
    service = SandboxService(sandbox, host=args.host, port=args.port, waiting=args.waiting, key=key)
    say(f"{service.url}: {sandbox.max_workers} programs at a time. {sandbox.level().sentence}")
    try:
        service.serve_forever()
    finally:
        service.close()
    return 0
