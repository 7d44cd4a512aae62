"""`gtpo sft`: supervised fine-tuning on multi-turn traces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from trl import ModelConfig, get_peft_config

from gtpo._text import say
from gtpo.commands.arguments import load_model, load_tokenizer, parse, take_model_options
from gtpo.errors import ConfigError
from gtpo.rollout import build_encoder
from gtpo.training.cold_start import ColdStartConfig, cold_start
from gtpo.training.data import load_traces
from gtpo.training.start import ResumeArguments, held


@dataclass
class TraceArguments(ResumeArguments):
    """What to learn from."""

    traces: str | None = field(
        default=None, metadata={"help": "Traces, JSON Lines with `messages`; `gtpo make-traces` makes them."}
    )
    max_traces: int | None = field(default=None, metadata={"help": "Use only the first n traces."})


def main(argv: Sequence[str]) -> int:
    """Parse, load and fine-tune."""
    trace_args, args, model_args = parse(
        (TraceArguments, ColdStartConfig, ModelConfig),
        argv,
        prog="gtpo sft",
        about="Fine-tune a model on multi-turn traces with tool calls; loss on its own tokens only.",
    )
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
        result = cold_start(
            load_model(model_args, training=True, trust_remote_code=args.trust_remote_code, more=model_options),
            tokenizer,
            traces,
            args,
            resume=trace_args.choice,
            resume_with_changes=trace_args.resume_with_changes,
            provenance=provenance,
            peft_config=get_peft_config(model_args),
        )
    if args.process_index == 0:
        say(f"{result.steps} steps on {len(traces)} traces; model in {result.model_dir}")
    return 0
