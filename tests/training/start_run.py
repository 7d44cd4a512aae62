"""Several processes make the directory of one run ready; started by test_distributed with torchrun.

    torchrun --nproc_per_node 2 start_run.py FOLDER

Writes what each process saw to FOLDER/process_N.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from gtpo.errors import ConfigError
from gtpo.training.checkpoints import seal
from gtpo.training.config import GTPOConfig
from gtpo.training.identity import settings_of
from gtpo.training.recorder import RunRecorder
from gtpo.training.start import begin

TIMES = 300


def record(recorder: RunRecorder) -> None:
    """Four steps."""
    for step in range(1, 5):
        recorder.append_metrics({"step": step})
        recorder.write_rollouts(step, [])


def main(folder: str) -> None:
    args = GTPOConfig(run_dir=str(Path(folder, "run")), use_cpu=True, bf16=False, report_to="none")
    is_main = args.process_index == 0
    torch.distributed.barrier()
    for _ in range(TIMES):
        recorder = RunRecorder(args.run_dir)

    def ready(**options: bool) -> str | None:
        torch.distributed.barrier()
        return begin(recorder, args, **options).checkpoint

    def left() -> list[str]:
        torch.distributed.barrier()
        found = sorted(str(path.relative_to(args.run_dir)) for path in Path(args.run_dir).rglob("*") if path.is_file())
        torch.distributed.barrier()  # nobody goes on before all have looked
        return found

    if is_main:
        record(recorder)
        for step in (2, 4):
            Path(args.output_dir, f"checkpoint-{step}").mkdir(parents=True)
        recorder.write_config({"config": settings_of(args)})
        whole = Path(args.output_dir, "checkpoint-2")
        for part in ("model.safetensors", "optimizer.pt", "rng_state_0.pth", "trainer_state.json"):
            (whole / part).write_text("{}")
        seal(whole)
        Path(args.output_dir, "checkpoint-4", "model.safetensors").write_text("cut short by a kill")
    found: dict[str, object] = {"process": args.process_index}
    try:
        found["refused"] = ready(resume=False, overwrite=False)
    except ConfigError as error:
        found["refused"] = str(error)
    found["resumed"] = ready(resume=True, overwrite=False)
    found["kept"] = left()
    for _ in range(TIMES // 10):
        if is_main:
            record(recorder)
        found["afresh"] = ready(resume=False, overwrite=True)
        found["cleared"] = left()
    Path(folder, f"process_{args.process_index}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
