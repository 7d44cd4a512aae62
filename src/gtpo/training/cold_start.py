"""Cold start: supervised fine-tuning on multi-turn traces through TRL's `SFTTrainer`.

Traces are encoded here, by the same code as rollouts, and passed to TRL with labels; TRL neither renders nor masks
anything. The loss covers the model's own tokens only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, ProgressCallback
from trl import SFTConfig, SFTTrainer

from gtpo._options import check_numbers
from gtpo.errors import ConfigError
from gtpo.rollout import PromptConfig, Prompts, build_encoder
from gtpo.training.data import trace_dataset
from gtpo.training.durable import DurableTrainer
from gtpo.training.identity import traces_id
from gtpo.training.progress import StepProgress
from gtpo.training.run import TrainResult, identity_of, recorded_run
from gtpo.training.start import Resume
from gtpo.training.trl_compat import apply_defaults, save_policy
from gtpo.training.trl_options import REFUSED


@dataclass
class ColdStartConfig(PromptConfig, SFTConfig):
    """Settings of a cold start; every option of TRL's `SFTConfig` keeps its name and meaning."""

    run_dir: str = field(
        default="runs/cold-start", metadata={"help": "Directory of the run; created if it does not exist."}
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Delete the records and checkpoints of an earlier run in run_dir."}
    )

    save_minutes: float = field(
        default=10.0,
        metadata={
            "help": "Also save a checkpoint at the end of a step when this many minutes have passed since the last "
            "one; the newest two of these are kept. 0: save by save_steps only. With save_strategy no, none is saved."
        },
    )

    def __post_init__(self) -> None:
        apply_defaults(self, "runs/cold-start")
        SFTConfig.__post_init__(self)
        PromptConfig.__post_init__(self)
        check_numbers(self)
        if self.enable_jit_checkpoint:
            raise ConfigError(f"enable_jit_checkpoint has no effect here: {REFUSED['enable_jit_checkpoint']}")
        if self.save_minutes < 0:
            raise ConfigError(f"save_minutes must be at least 0, got {self.save_minutes}")
        if self.packing or self.completion_only_loss or self.assistant_only_loss:
            raise ConfigError(
                "gtpo sft masks the traces itself, and uses whole traces: leave packing, completion_only_loss and "
                "assistant_only_loss unset"
            )


def cold_start(
    model: Any,
    tokenizer: Any,
    traces: Sequence[Sequence[Mapping[str, Any]]],
    args: ColdStartConfig,
    *,
    resume: Resume = False,
    resume_with_changes: bool = False,
    provenance: Mapping[str, Any] | None = None,
    **trainer_options: Any,
) -> TrainResult:
    """Fine-tune on traces and save to `<run_dir>/model`.

    Args:
        model: a model, or a folder or Hub id.
        tokenizer: a tokenizer with a chat template.
        traces: conversations; see `Encoder.trace`.
        args: settings.
        resume: resume from the newest whole checkpoint; "auto": if there is one, else start.
        resume_with_changes: resume although settings, traces or model differ from those that the run started with.
        provenance: further entries of config.yaml.
        trainer_options: passed on to `SFTTrainer` (e.g. peft_config).

    Raises:
        ConfigError: see `gtpo.training.run.train`.
        DataError: a trace is malformed, or none fits into `args.max_length`.
        ModelError: loss, gradient or weights are not finite; names the checkpoint to resume from.
        RecordError: the run's directory can't be written.
        StoppedError: a signal ended the run before its last step; it can be resumed.
    """
    encoder = build_encoder(args, tokenizer, args.specs())
    prompt = Prompts(encoder.format, args.system_prompt).system_prompt()
    dataset, too_long = trace_dataset(traces, encoder, max_length=args.max_length or 2**31, system_prompt=prompt)
    identity = {"traces": traces_id(traces), **identity_of(model, args, trainer_options)}
    about = {**(provenance or {}), "identity": identity}
    progress = StepProgress(enabled=not args.disable_tqdm, label="cold start")
    with recorded_run(args, about, progress, resume=resume, with_changes=resume_with_changes) as run:
        trainer = ColdStartTrainer(
            model,
            args=args,
            train_dataset=dataset,
            processing_class=tokenizer,
            callbacks=[*run.callbacks, progress],
            **trainer_options,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        found = {"tool_format": encoder.choice, "traces": len(dataset), "traces_too_long": too_long}
        run.complete(trainer, found)
        return TrainResult(Path(args.run_dir), save_policy(trainer, args.run_dir), trainer.state.global_step)


class ColdStartTrainer(DurableTrainer, SFTTrainer):
    """TRL's `SFTTrainer`, with sealed checkpoints: incomplete ones are never resumed from."""
