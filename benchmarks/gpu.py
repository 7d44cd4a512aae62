"""Measures gtpo on one GPU in one command; a bare machine needs requirements/gpu.txt in addition to torch.

    python benchmarks/gpu.py OUTPUT --model FOLDER [--data FOLDER] [--only SECTION ...] [--minutes 8]

FOLDER: SmolLM2-135M-Instruct (recipes/smollm2-gsm8k/prepare.py makes it), or another model with a chat template.

steps         four training steps in process: all weights, LoRA, and LoRA on a random model with the shape of
              Qwen2.5-1.5B; seconds by phase, tokens per second, peak memory compared with `gtpo plan`
loop          rollouts per second compared with TRL's own loop (benchmarks/rollouts.py, cases A1 and B1)
evaluate      `gtpo eval`: tokens per second
determinism   whether two runs with the same seed have equal metrics and weights
cold_start    traces of GSM8K's worked solutions, `gtpo sft` on them, and the pass rate on SVAMP
study         GRPO and the defaults from that cold start, 30 steps, two seeds each, all four runs at once

The last two need `--data`: a folder with gsm8k_train.jsonl and svamp.jsonl. Sections run in this order, each in a
separate process with its log in OUTPUT/logs. A section whose result is in OUTPUT is not run again; the cold start and
the study continue where they stopped when the time ran out. The report is OUTPUT/report.md; the exit status is 1 if a
section failed or is not finished. `--dry_run` runs every section on a tiny model, on any machine; its numbers mean
nothing.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from _gpu_sections import DRY, FULL, NEED_DATA, SECTIONS, Job


def run_section(name: str, job: Job) -> None:
    """The process of a section."""
    (job.output / "logs").mkdir(exist_ok=True)
    with (job.output / "logs" / f"{name}.txt").open("a", buffering=1) as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        began = time.perf_counter()
        lines = SECTIONS[name](job)
        document = {"seconds": time.perf_counter() - began, "lines": lines}
        (job.output / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")


def run(job: Job, names: Sequence[str], minutes: float) -> dict[str, str]:
    """Run what has no result yet. What is known of each section: `done`, or why it is not."""
    end = time.monotonic() + 60 * minutes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gtpo.commands.train", "gtpo.commands.evaluate"])
    said = {}
    for name in names:
        result = job.output / f"{name}.json"
        if name in NEED_DATA and job.data is None:
            said[name] = "not run: it needs --data"
        elif not result.exists():
            process = context.Process(target=run_section, args=(name, job))
            process.start()
            process.join(max(end - time.monotonic(), 0))
            if process.is_alive():
                process.terminate()  # training saves where it is
                process.join(30)
                process.kill()
                said[name] = "not finished in time; run the same command to continue"
            elif process.exitcode or not result.exists():
                said[name] = f"failed: see logs/{name}.txt"
        said.setdefault(name, "done")
        print(f"{name}: {said[name]}", flush=True)
    return said


def report(job: Job, said: Mapping[str, str]) -> str:
    """The sections' results as a page."""
    import torch

    name = torch.cuda.get_device_name() if job.device == "cuda" else "CPU"
    versions = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "trl"))
    lines = [f"# gtpo on one GPU\n\n{name}; {versions}\n"]
    for section, state in said.items():
        lines.append(f"## {section.replace('_', ' ')}\n")
        if state == "done":
            found = json.loads((job.output / f"{section}.json").read_text())
            lines += [*found["lines"], "", f"({found['seconds']:.0f} s)", ""]
        else:
            lines += [state, ""]
    return "\n".join(lines)


def made_up(output: Path) -> tuple[Path, Path]:
    """The tiny model and problems in GSM8K's form, for a dry run."""
    from gtpo.lab.tiny.model import make_model, make_tokenizer

    model, data = output / "tiny", output / "data"
    if not (data / "svamp.jsonl").exists():
        tokenizer = make_tokenizer()
        make_model(tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(model)
        tokenizer.save_pretrained(model)
        data.mkdir()
        rows = [
            {
                "id": str(n),
                "domain": "math",
                "question": f"Ann has {n} pens and gets 2. How many?",
                "answer": str(n + 2),
                "solution": f"{n}+2 = <<{n}+2={n + 2}>>{n + 2}\n#### {n + 2}",
            }
            for n in range(16)
        ]
        for name in ("gsm8k_train", "svamp"):
            (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return model, data


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--model", type=Path, help="folder of the model")
    parser.add_argument("--data", type=Path, help="folder with gsm8k_train.jsonl and svamp.jsonl")
    parser.add_argument(
        "--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=8.0, help="time limit of the whole command, in minutes (default: 8)"
    )
    parser.add_argument("--dry_run", action="store_true", help="run on a tiny model; its numbers mean nothing")
    args = parser.parse_args()
    import torch

    if not (args.dry_run or torch.cuda.is_available()):
        parser.error("no GPU was found; --dry_run runs every section without one")
    if not (args.dry_run or args.model):
        parser.error("give --model, the folder of SmolLM2-135M-Instruct or another model with a chat template")
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    if args.dry_run:
        args.model, args.data = made_up(output)
    device = "cpu" if args.dry_run else "cuda"
    data = args.data.resolve() if args.data else None
    job = Job(output, args.model.resolve(), data, DRY if args.dry_run else FULL, device)
    said = run(job, [name for name in SECTIONS if name in args.only], args.minutes)
    text = report(job, said)
    (output / "report.md").write_text(text)
    print("\n" + text)
    return int(any(state != "done" for state in said.values()))


if __name__ == "__main__":
    sys.exit(main())
