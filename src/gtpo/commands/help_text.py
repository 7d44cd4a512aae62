"""The `--help` of a command: its options in groups, with types, choices and defaults.

The groups below hold the options that gtpo defines and the TRL options that most runs need. All other options inherited
from TRL and transformers are in a last group, shown by `--help_all`.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

import shtab

NAMED = {
    "model": "model_name_or_path model_revision dtype attn_implementation trust_remote_code",
    "LoRA and quantisation": "use_peft lora_r lora_alpha lora_dropout lora_target_modules load_in_8bit load_in_4bit",
    "data": "train_file problems columns data_dir max_problems sample_seed samples traces max_traces max_length "
    "solutions max_solutions",
    "rollouts: prompt and tools": "tools tool_state search_results passages tool_format system_prompt instructions "
    "chat_template_kwargs environment environment_timeout_s mcp_session mcp_connect_s mcp_call_s mcp_env "
    "mcp_key_variable",
    "rollouts: limits and sampling": "max_turns max_turn_tokens max_completion_length max_context "
    "max_observation_tokens max_repeated_tokens max_rollout_s temperature top_p top_k min_p "
    "repetition_penalty num_generations max_concurrency deterministic resample_uniform",
    "rollouts: the sandbox": "sandbox sandbox_require tool_wall_s tool_cpu_s tool_memory_mb",
    "rewards": "verifier reward_funcs reward_weights graded success_threshold format_penalty penalize_syntax_errors "
    "turn_reward_funcs turn_reward_weights",
    "credit": "algorithm preset gamma first_turn_share alpha similarity normalize_over zero_uniform_groups "
    "advantage_clip turn_rewards turn_returns no_answer_rollouts truncated_rollouts",
    "optimisation": "learning_rate lr_scheduler_type warmup_steps max_steps num_train_epochs "
    "per_device_train_batch_size gradient_accumulation_steps num_iterations epsilon epsilon_high beta loss_type "
    "max_grad_norm weight_decay optim bf16 gradient_checkpointing seed",
    "generation with vLLM": "use_vllm vllm_mode vllm_server_base_url vllm_gpu_memory_utilization "
    "vllm_tensor_parallel_size vllm_sync overlap max_staleness min_groups",
    "output, checkpoints and logging": "run_dir output overwrite resume resume_with_changes save_steps "
    "save_minutes save_total_limit logging_steps record_every record_max_tokens report_to run_name disable_tqdm",
    "failures": "max_failed_fraction max_failed_batches",
}
"""Groups with the names of their options, in the order in which they are shown."""

INHERITED = "inherited from TRL and transformers"
_FILES = {"config", "train_file", "traces", "solutions", "passages", "instructions", "output", "study", "problems"}
_FOLDERS = {"run_dir", "data_dir", "runs"}
WORDS = {
    "model_name_or_path": "Local folder or Hub id of the model; it needs a chat template.",
    "model_revision": "Branch, tag or commit of the model on the Hub.",
    "dtype": "Data type of the weights; auto: the checkpoint's own.",
    "attn_implementation": "Attention implementation, such as sdpa or flash_attention_2.",
    "trust_remote_code": "Allow running code that comes with the model.",
    "use_peft": "Train a LoRA adapter instead of all weights, and merge it at the end.",
    "lora_r": "Rank of the LoRA adapter.",
    "lora_alpha": "Scale of the LoRA adapter, divided by its rank.",
    "lora_target_modules": "Modules that get a LoRA adapter; all-linear: all linear layers.",
    "num_generations": "Number of rollouts per problem (the group size), at least 2.",
    "num_iterations": "Number of optimiser passes over each batch of rollouts.",
    "max_steps": "Number of optimiser steps; -1: train for num_train_epochs.",
    "num_train_epochs": "Number of passes over the problems or traces; used when max_steps is -1.",
    "per_device_train_batch_size": "Number of rollouts or traces per micro-batch on each device.",
    "gradient_accumulation_steps": "Number of micro-batches per optimiser step.",
    "learning_rate": "Peak learning rate.",
    "lr_scheduler_type": "Learning-rate schedule: linear, cosine, constant or another one of transformers.",
    "optim": "Optimiser, by its name in transformers, such as adamw_torch_fused or adamw_bnb_8bit.",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, about 20 %% slower.",
    "epsilon": "Lower clip range of the importance ratio.",
    "beta": "Coefficient of the KL penalty; 0: no reference model is loaded.",
    "loss_type": "Token loss, by its name in TRL: dapo, grpo, bnpo, dr_grpo and others in gtpo train; nll or dft in "
    "gtpo sft.",
    "bf16": "Compute in bfloat16; in gtpo train and gtpo sft by default true.",
    "reward_weights": "Weights of reward_funcs; by default 1 each.",
    "use_vllm": "Generate rollouts with vLLM; needs pip install 'gtpo[vllm]'.",
    "vllm_mode": "Where vLLM runs: colocate (in the training process) or server (started with trl vllm-serve, or with "
    "vllm serve for --vllm_sync adapter).",
    "vllm_gpu_memory_utilization": "With colocate: share of the GPU's memory for vLLM, in (0, 1].",
    "vllm_tensor_parallel_size": "With colocate: number of GPUs over which vLLM splits the model.",
    "save_steps": "Optimiser steps between checkpoints; below 1: a fraction of all steps.",
    "save_total_limit": "Number of checkpoints to keep; older ones are deleted. Without this option all are kept.",
    "logging_steps": "Optimiser steps between lines of metrics.jsonl; below 1: a fraction of all steps.",
    "report_to": "Trackers to log to besides metrics.jsonl, such as wandb or tensorboard; or none, or all.",
    "run_name": "Name of the run in the trackers.",
    "disable_tqdm": "Do not show progress.",
    "max_length": "Maximum length of a trace, in tokens; longer traces are left out.",
}
"""Help texts that replace those of TRL and transformers, for options that most runs need."""
_CHOICES_SHOWN, _LONG = 8, 200
_KINDS: Mapping[Any, str] = {dict: "JSON", str: "TEXT", float: "FLOAT", int: "INT"}


def help_parser(
    parser: argparse.ArgumentParser,
    types: Sequence[type],
    aliases: Mapping[str, str],
    *,
    usage: str | None = None,
    everything: bool = False,
) -> argparse.ArgumentParser:
    """A parser for printing help and for shell completion; the parser given does the parsing.

    Args:
        parser: the one that parses.
        types: the dataclasses whose fields are its options.
        aliases: short names of options.
        usage: what follows the command's name on the first line.
        everything: also show the options of TRL and transformers that are in none of our groups.
    """
    groups, inherited = grouped(types)
    hints = {name: hint for kind in types for name, hint in get_type_hints(kind).items()}
    short = {name: alias for alias, name in aliases.items()}
    actions = {action.dest: action for action in reversed(parser._actions)}  # the first of two: the other is --no_...
    shown = argparse.ArgumentParser(
        prog=parser.prog,
        usage=f"{parser.prog} {usage or '[--config FILE.yaml] [--OPTION VALUE ...]'}",
        description=parser.description,
        epilog=_closing(inherited, types, everything),
        formatter_class=_Formatter,
        add_help=False,
        allow_abbrev=False,
    )
    general = shown.add_argument_group("general")
    config = general.add_argument(
        "--config", metavar="FILE.yaml", help="YAML file with options by name; the command line overrides it."
    )
    config.complete = shtab.FILE  # type: ignore[attr-defined]
    general.add_argument(
        "-h", "--help", action="store_true", default=argparse.SUPPRESS, help="Show this help and exit."
    )
    if inherited:
        general.add_argument(
            "--help_all", action="store_true", default=argparse.SUPPRESS, help=f"Also show the options {INHERITED}."
        )
    ours = {field.name for kind in types for field in dataclasses.fields(kind) if _is_ours(_owner(kind, field.name))}
    for title, names in groups.items():
        group = shown.add_argument_group(title)
        for name in names:
            about = _about(actions[name], name in ours, brief=not everything)
            _add(group, actions[name], hints[name], [short[name]] if name in short else [], about)
    if everything and inherited:
        group = shown.add_argument_group(f"{INHERITED} ({len(inherited)} options)")
        for name in inherited:
            _add(group, actions[name], hints[name], [], _about(actions[name], False, brief=False))
    return shown


def grouped(types: Sequence[type]) -> tuple[dict[str, list[str]], list[str]]:
    """The options of a command by group, and the inherited options that are in no group.

    An option that gtpo defines and that `NAMED` does not list goes into a group of its dataclass, whose title is the
    first line of the dataclass's docstring.
    """
    of_option = {name: title for title, names in NAMED.items() for name in names.split()}
    groups: dict[str, list[str]] = {}
    inherited: list[str] = []
    for kind in types:
        for field in dataclasses.fields(kind):
            if not field.init or field.name in _seen(groups, inherited):
                continue
            owner = _owner(kind, field.name)
            if field.name in of_option:
                groups.setdefault(of_option[field.name], []).append(field.name)
            elif _is_ours(owner):
                groups.setdefault(_title(owner), []).append(field.name)
            else:
                inherited.append(field.name)
    own = [title for title in groups if title not in NAMED]
    order = {name: place for names in NAMED.values() for place, name in enumerate(names.split())}
    named = {
        title: sorted(groups[title], key=lambda name: order.get(name, len(order))) for title in NAMED if title in groups
    }
    return {title: groups[title] for title in own} | named, sorted(inherited)


def _seen(groups: Mapping[str, list[str]], inherited: Sequence[str]) -> set[str]:
    return {name for names in groups.values() for name in names} | set(inherited)


def _title(owner: type) -> str:
    first = (owner.__doc__ or owner.__name__).splitlines()[0].rstrip(".")
    return first[:1].lower() + first[1:]


def _is_ours(owner: type) -> bool:
    return owner.__module__.startswith("gtpo")


def _owner(kind: type, name: str) -> type:
    """The class, of a dataclass and its bases, that defines a field."""
    return next(base for base in kind.__mro__ if name in inspect.get_annotations(base))


def _about(action: argparse.Action, ours: bool, *, brief: bool) -> str:
    """What an option does: for one of ours its own text, for one of TRL's that of `WORDS` or, cut if `brief`, TRL's."""
    own = action.help or ""
    if ours and own:
        return own
    about = WORDS.get(action.dest, own)
    return about.split(". ")[0].rstrip(".") + "." if brief and len(about) > _LONG else about


def _add(group: Any, action: argparse.Action, hint: Any, aliases: Sequence[str], about: str) -> None:
    added = group.add_argument(
        *(f"--{alias}" for alias in aliases),
        action.option_strings[0],
        dest=action.dest,
        nargs=action.nargs,
        default=action.default,
        help=about,
        **_values(action, hint),
    )
    complete = shtab.FILE if action.dest in _FILES else shtab.DIRECTORY if action.dest in _FOLDERS else None
    if complete:
        added.complete = complete


def _values(action: argparse.Action, hint: Any) -> dict[str, Any]:
    if action.choices:
        choices = list(action.choices)
        return {"choices": choices} | ({"metavar": "NAME"} if len(choices) > _CHOICES_SHOWN else {})
    if getattr(action.type, "__name__", "") == "string_to_bool":
        return {"choices": ["true", "false"]}
    names = [name for part in (get_args(hint) or (hint,)) for name in (get_args(part) or (part,))]
    return {"metavar": next((shown for kind, shown in _KINDS.items() if kind in names), "TEXT")}


def _closing(inherited: Sequence[str], types: Sequence[type], everything: bool) -> str | None:
    if not inherited or everything:
        return None
    bases = (base for kind in types for base in kind.__mro__ if base.__module__.startswith("trl"))
    theirs = dict.fromkeys(base.__name__ for base in bases if not base.__name__.startswith("_"))
    return f"{len(inherited)} more options, inherited from TRL's {' and '.join(theirs)}, are shown by --help_all."


class _Formatter(argparse.HelpFormatter):
    """Shows the default of each option that has one."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _get_help_string(self, action: argparse.Action) -> str:
        about = action.help or ""
        if action.default in (None, argparse.SUPPRESS) or action.default == []:
            return about
        return f"{about} [default: {_shown(action.default)}]".lstrip()


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    if isinstance(value, bool):
        return str(value).lower()
    return str(getattr(value, "value", value)).replace("%", "%%") or "''"
