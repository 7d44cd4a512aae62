"""`gtpo eval`: pass rate of a model over a file of problems, with the tool, with the same loop as training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from tqdm.auto import tqdm
from trl import ModelConfig

from gtpo.commands.arguments import load_tokenizer, parse, say, verifiable
from gtpo.commands.backends import BackendArguments, make_backend
from gtpo.errors import ConfigError
from gtpo.evaluation import EvalProtocol, evaluate, save_traces
from gtpo.rollout import (
    ChatEncoder,
    PythonTool,
    RolloutEngine,
    RolloutLimits,
    Sampling,
    ToolArguments,
    get_format,
    system_prompt_for,
)
from gtpo.tasks.problems import load_problems, sample
from gtpo.tasks.verifiers import get_verifier


@dataclass
class EvalArguments:
    """What to evaluate on, and how."""

    problems: Optional[str] = field(  # noqa: UP045 (the argument parser reads the annotation)
        default=None, metadata={"help": "Problems, JSON Lines with `question` and `answer`."}
    )
    max_problems: Optional[int] = field(  # noqa: UP045
        default=None, metadata={"help": "Evaluate on a fixed random sample of n problems."}
    )
    sample_seed: int = field(default=0, metadata={"help": "Of that sample."})
    output: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Write everything, every sample included, to this JSON file."}
    )
    traces: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "Write the rollouts that passed to this file, as traces for cold-start."}
    )
    verifier: str = field(default="math", metadata={"help": "Checks the answers: math or code."})
    samples: int = field(default=1, metadata={"help": "Rollouts a problem."})
    temperature: float = field(default=1.0, metadata={"help": "0: greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus of the sampling distribution."})
    top_k: int = field(default=0, metadata={"help": "Most likely tokens to sample from; 0: all."})
    tool_format: str = field(default="tool_call", metadata={"help": "Syntax of tool calls: tool_call or fenced."})
    system_prompt: Optional[str] = field(  # noqa: UP045
        default=None, metadata={"help": "System prompt; by default the format's own instruction. '' for none."}
    )
    max_turns: int = field(default=8, metadata={"help": "Model turns a rollout."})
    max_turn_tokens: int = field(default=512, metadata={"help": "Sampled tokens a turn."})
    max_total_tokens: int = field(default=2048, metadata={"help": "Completion tokens a rollout."})
    seed: int = field(default=0, metadata={"help": "Of the sampling."})


def main(argv: Sequence[str]) -> int:
    """Parse, evaluate, print the summary."""
    args, tool_args, backend_args, model_args = parse(
        (EvalArguments, ToolArguments, BackendArguments, ModelConfig),
        argv,
        prog="gtpo eval",
        about="Pass rate of a model over a file of problems, with the Python tool.",
    )
    if args.problems is None:
        raise ConfigError("no problems: give --problems FILE.jsonl")
    problems = load_problems(args.problems)
    if args.max_problems is not None and args.max_problems < len(problems):
        problems = sample(problems, args.max_problems, args.sample_seed)
    verifier = get_verifier(args.verifier)
    problems = verifiable(problems, verifier)
    limits = RolloutLimits(args.max_turns, args.max_turn_tokens, args.max_total_tokens)
    tokenizer = load_tokenizer(model_args)
    tool_format = get_format(args.tool_format)
    encoder = ChatEncoder(tokenizer, tool_format)
    prompt = system_prompt_for(tool_format, args.system_prompt, keeps_state=tool_args.tool_state == "session")
    sampling = Sampling(args.temperature, args.top_p, args.top_k)
    tool = PythonTool(tool_args.make_sandbox(), tool_args.tool_state)
    protocol = EvalProtocol(args.tool_format, prompt, args.samples, sampling, limits, args.seed, tool.state)
    backend = make_backend(backend_args, model_args, tokenizer)
    with tqdm(total=len(problems) * args.samples, desc="eval", dynamic_ncols=True) as bar:

        def progress(what: str, done: int, of: int) -> None:
            bar.update(done - bar.n)

        result = evaluate(
            problems,
            RolloutEngine(encoder, tool, limits),
            backend,
            verifier,
            protocol,
            progress=progress,
            rescue=Path(f"{args.output or 'evaluation'}.unfinished.jsonl"),
        )
    if args.output:
        result.save(args.output, model=model_args.model_name_or_path, problem_file=args.problems)
        say(f"written to {args.output}")
    if args.traces:
        say(f"{save_traces(result, args.traces)} rollouts that passed written to {args.traces}")
    print(json.dumps(result.summary(), indent=1))
    return 0
