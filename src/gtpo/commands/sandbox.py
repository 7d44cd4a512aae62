"""`gtpo sandbox serve`: offer the local sandbox to other machines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from gtpo._text import say
from gtpo.commands.arguments import CommandLine
from gtpo.errors import ConfigError
from gtpo.sandbox import LocalSandbox, Require
from gtpo.sandbox.service import SandboxService

LOOPBACK = ("127.0.0.1", "localhost")


@dataclass
class ServeArguments:
    """The server."""

    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0: all addresses of this machine."}
    )
    port: int = field(default=8080, metadata={"help": "Port to listen on; 0: a free one."})
    max_workers: int | None = field(
        default=None,
        metadata={
            "help": "Maximum number of programs that run at the same time; by default three per core, and up to eight "
            "per core if they take long."
        },
    )
    waiting: int = field(
        default=256,
        metadata={"help": "Maximum number of requests that wait for a worker; further ones get HTTP status 429."},
    )
    sandbox_require: Require = field(
        default="landlock",
        metadata={
            "help": "Minimum isolation, from the strongest level to the weakest; if the machine offers less, the "
            "server does not start."
        },
    )
    key_variable: str = field(
        default="GTPO_SANDBOX_KEY",
        metadata={"help": "Environment variable that holds the key that each request must carry."},
    )
    open_to_all: bool = field(
        default=False,
        metadata={"help": "Serve other machines without a key. Anybody who reaches the port can then run programs."},
    )


COMMAND_LINE = CommandLine(
    "gtpo sandbox serve", "Offer this machine's sandbox to other machines over HTTP.", (ServeArguments,)
)


def main(argv: Sequence[str]) -> int:
    """Parse and serve until interrupted."""
    if list(argv[:1]) != ["serve"]:
        raise ConfigError("gtpo sandbox has one subcommand: gtpo sandbox serve [--OPTION VALUE ...]")
    (args,) = COMMAND_LINE.parse(argv[1:])
    key = os.environ.get(args.key_variable) or None
    if args.host not in LOOPBACK and key is None and not args.open_to_all:
        raise ConfigError(
            f"--host {args.host} accepts requests from other machines: set the environment variable "
            f"{args.key_variable} to a key here and where training runs, or give --open_to_all true if the network "
            "itself is closed"
        )
    sandbox = LocalSandbox(max_workers=args.max_workers, require=args.sandbox_require)
    service = SandboxService(sandbox, host=args.host, port=args.port, waiting=args.waiting, key=key)
    say(f"{service.url}: {sandbox.max_workers} programs at a time. {sandbox.level().sentence}")
    try:
        service.serve_forever()
    finally:
        service.close()
    return 0
