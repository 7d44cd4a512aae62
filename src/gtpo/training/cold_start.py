"""Cold start: supervised fine-tuning on multi-turn traces through TRL's `SFTTrainer`.

Traces are encoded here, by the same code as rollouts, and handed over with labels; TRL neither renders nor masks
anything. Loss on the model's own tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from gtpo.errors import ConfigError
from gtpo.rollout import PromptConfig, Prompts, build_encoder
from gtpo.training.data import trace_dataset
from gtpo.training.progress import StepProgress
from gtpo.training.recorder import RunRecorder
from gtpo.training.run import MetricsCallback, TrainResult, begin
from gtpo.training.trl_compat import apply_defaults, save_policy


@dataclass
class ColdStartConfig(PromptConfig, SFTConfig):
    """Settings of a cold start; every option of TRL's `SFTConfig` keeps its name and meaning."""

    run_dir: str = field(
        default="runs/cold-start", metadata={"help": "Directory of the run; created if it does not exist."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the records and checkpoints of an earlier run in run_dir."}
    )

    def __post_init__(self) -> None:
        apply_defaults(self, "runs/cold-start")
        SFTConfig.__post_init__(self)
        PromptConfig.__post_init__(self)
        if self.packing or self.completion_only_loss or self.assistant_only_loss:
            raise ConfigError(
                "the cold start masks by itself, on whole traces: leave packing, completion_only_loss and "
                "assistant_only_loss unset"
            )


def cold_start(
    model: Any,
    tokenizer: Any,
    traces: Sequence[Sequence[Mapping[str, Any]]],
    args: ColdStartConfig,
    *,
    resume: bool = False,
    provenance: Mapping[str, Any] | None = None,
    **trainer_options: Any,
) -> TrainResult:
    """Fine-tune on traces and save to `<run_dir>/model`.

    Args:
        model: a model, or a folder or Hub id.
        tokenizer: with a chat template.
        traces: conversations; see `Encoder.trace`.
        args: settings.
        resume: go on from the last checkpoint.
        provenance: further entries of config.yaml.
        trainer_options: passed on to `SFTTrainer` (e.g. peft_config).

    Raises:
        DataError: a malformed trace, or none that fits into `args.max_length`.
        RecordError: the run's directory can't be written.
    """
    recorder = RunRecorder(args.run_dir)
    encoder = build_encoder(args, tokenizer, args.specs())
    prompt = Prompts(encoder.format, args.system_prompt).system_prompt()
    dataset, too_long = trace_dataset(traces, encoder, max_length=args.max_length or 2**31, system_prompt=prompt)
    checkpoint = begin(recorder, args, resume=resume, overwrite=args.overwrite)
    if args.process_index == 0:
        recorder.write_config(
            {
                **(provenance or {}),
                "tool_format": encoder.choice,
                "traces": len(dataset),
                "traces_too_long": too_long,
                "config": args.to_dict(),
            }
        )
    progress = StepProgress(enabled=not args.disable_tqdm, label="cold start")
    trainer = SFTTrainer(
        model,
        args=args,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[MetricsCallback(recorder), progress],
        **trainer_options,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return TrainResult(Path(args.run_dir), save_policy(trainer, args.run_dir), trainer.state.global_step)
