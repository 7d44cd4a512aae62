"""`gtpo sft`: supervised fine-tuning on multi-turn traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from trl import ModelConfig

from gtpo._text import say
from gtpo.commands.arguments import CommandLine
from gtpo.commands.model_options import adapter_config, load_model, load_tokenizer, take_model_options
from gtpo.errors import ConfigError
from gtpo.rollout import build_encoder
from gtpo.training.cold_start import ColdStartConfig, cold_start
from gtpo.training.data import load_traces
from gtpo.training.start import ResumeArguments, held


@dataclass
class TraceArguments(ResumeArguments):
    """Data."""

    traces: str | None = field(
        default=None,
        metadata={"help": "Traces: a JSON Lines file with a field named messages, as gtpo make-traces writes it."},
    )
    max_traces: int | None = field(
        default=None, metadata={"help": "Number of traces to use, starting with the first; by default all."}
    )


COMMAND_LINE = CommandLine(
    "gtpo sft",
    "Fine-tune a model on multi-turn traces with tool calls; the loss covers the model's own tokens only.",
    (TraceArguments, ColdStartConfig, ModelConfig),
    usage="--model MODEL --traces TRACES.jsonl [--run_dir FOLDER] [--config FILE.yaml] [--OPTION VALUE ...]",
)


def main(argv: Sequence[str]) -> int:
    """Parse, load and fine-tune."""
    trace_args, args, model_args = COMMAND_LINE.parse(argv)
    if trace_args.traces is None:
        raise ConfigError("no traces: give --traces FILE.jsonl; `gtpo make-traces` makes one from worked solutions")
    traces = load_traces(trace_args.traces)[: trace_args.max_traces]
    tokenizer = load_tokenizer(model_args, trust_remote_code=args.trust_remote_code)
    encoder = build_encoder(args, tokenizer, args.specs())
    if args.process_index == 0:
        say(f"tool format: {encoder.choice}")
    provenance = {"traces": asdict(trace_args), "model": asdict(model_args)}
    model_options = take_model_options(args)
    with held(args, trace_args, provenance):
        model = load_model(model_args, training=True, trust_remote_code=args.trust_remote_code, more=model_options)
        result = cold_start(
            model,
            tokenizer,
            traces,
            args,
            resume=trace_args.choice,
            resume_with_changes=trace_args.resume_with_changes,
            provenance=provenance,
            peft_config=adapter_config(model_args, model),
        )
    if args.process_index == 0:
        say(f"{result.steps} steps on {len(traces)} traces; model in {result.model_dir}")
    return 0
