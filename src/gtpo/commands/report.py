"""`gtpo report`: the credit inspector, as an HTML file or as a live page while a run trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gtpo._text import say
from gtpo.commands.arguments import CommandLine, positional
from gtpo.errors import ConfigError
from gtpo.report import serve, write_page


@dataclass
class ReportArguments:
    """The report."""

    runs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Run directories, shown together. The option's name may be omitted: gtpo report RUN [RUN ...]."
        },
    )
    output: str | None = field(
        default=None, metadata={"help": "HTML file to write; by default report.html in the first run directory."}
    )
    max_mb: float = field(
        default=50.0,
        metadata={"help": "Maximum size of the rollouts in the page, in MB; rollouts beyond it are left out."},
    )
    serve: bool = field(
        default=False, metadata={"help": "Serve the page on 127.0.0.1 and update it while the runs train."}
    )
    port: int = field(default=0, metadata={"help": "Port for --serve; 0: a free one."})


COMMAND_LINE = CommandLine(
    "gtpo report",
    "Write one HTML page about one run or several: rollouts, rewards, returns and the advantage of each turn.",
    (ReportArguments,),
    usage="RUN [RUN ...] [--OPTION VALUE ...]",
)


def main(argv: Sequence[str]) -> int:
    """Parse, write or serve."""
    argv = list(argv)
    if "--serve" in argv and argv[argv.index("--serve") + 1 :][:1] not in (["true"], ["false"]):
        argv.insert(argv.index("--serve") + 1, "true")  # else a run after it would be taken for its value
    if argv[:1] == ["--serve"]:
        argv = argv[2:] + argv[:2]
    (args,) = COMMAND_LINE.parse(positional(argv, "runs"))
    if not args.runs:
        raise ConfigError("no run directory: run gtpo report RUN")
    if args.serve:
        server = serve(args.runs, args.port)
        say(f"http://127.0.0.1:{server.server_address[1]}/ shows {', '.join(args.runs)}; Ctrl-C ends it")
        with server:
            server.serve_forever()
        return 0
    path = Path(args.output or Path(args.runs[0]) / "report.html")
    size = write_page(args.runs, path, max_bytes=int(args.max_mb * 1e6))
    say(f"{path}: {size / 1e6:.1f} MB; open it in a browser")
    return 0
