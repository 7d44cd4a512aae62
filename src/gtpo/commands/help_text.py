"""`--help` of a command: its options in groups, with types, choices and defaults.

Options that gtpo defines, and those of TRL's that most runs need, are in the groups below. All others that are
inherited from TRL and transformers are in a last group, shown by `--help_all`.
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
"""Groups by the names of their options, in the order in which they are shown."""

INHERITED = "inherited from TRL and transformers"
_FILES = {"config", "train_file", "traces", "solutions", "passages", "instructions", "output", "study", "problems"}
_FOLDERS = {"run_dir", "data_dir", "runs"}
WORDS = {
    "model_name_or_path": "Folder or Hub id of the model; it needs a chat template.",
    "model_revision": "Branch, tag or commit of the model on the Hub.",
    "dtype": "Number format of the weights; auto: that of the checkpoint.",
    "attn_implementation": "Attention kernel, such as sdpa or flash_attention_2.",
    "trust_remote_code": "Run code that comes with the model.",
    "use_peft": "Train a LoRA adapter and merge it at the end, not all weights.",
    "lora_r": "Rank of the adapter.",
    "lora_alpha": "Scale of the adapter, divided by its rank.",
    "lora_target_modules": "Modules that get an adapter; all-linear: all linear layers.",
    "num_generations": "Rollouts per problem: the size of a group, at least 2.",
    "num_iterations": "Optimiser passes over each batch of rollouts.",
    "max_steps": "Number of optimiser steps; -1: as many as num_train_epochs take.",
    "num_train_epochs": "Passes over the problems or traces, where max_steps is -1.",
    "per_device_train_batch_size": "Rollouts or traces per device and micro-batch.",
    "gradient_accumulation_steps": "Micro-batches per optimiser step.",
    "learning_rate": "Peak learning rate.",
    "lr_scheduler_type": "Schedule of the learning rate: linear, cosine, constant and others of transformers.",
    "optim": "Optimiser by its name in transformers, such as adamw_torch_fused or adamw_bnb_8bit.",
    "gradient_checkpointing": "Recompute activations in the backward pass: less memory, about 20 %% slower.",
    "epsilon": "Lower clip range of the ratio.",
    "beta": "Coefficient of the KL penalty; 0: no reference model is loaded.",
    "loss_type": "Loss over the tokens, by its name in TRL: dapo, grpo, bnpo, dr_grpo and others in gtpo train, nll or "
    "dft in gtpo sft.",
    "bf16": "Compute in bfloat16; by default true.",
    "reward_weights": "Weights of reward_funcs; by default 1 each.",
    "use_vllm": "Generate with vLLM; needs pip install 'gtpo[vllm]'.",
    "vllm_mode": "colocate: in the training process; server: a server that trl vllm-serve has started.",
    "save_steps": "Optimiser steps between checkpoints; below 1: a share of all steps.",
    "save_total_limit": "Checkpoints to keep, the newest; by default all.",
    "logging_steps": "Optimiser steps between lines of metrics.jsonl; below 1: a share of all steps.",
    "report_to": "Trackers besides metrics.jsonl, such as wandb or tensorboard; none or all.",
    "run_name": "Name of the run in the trackers.",
    "disable_tqdm": "Show no progress.",
    "max_length": "Longest trace, in tokens; longer ones are left out.",
}
"""In the place of texts of TRL and transformers, for options that most runs need."""
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
    """A parser that is printed, or completed by a shell, in the place of the one that parses.

    Args:
        parser: the one that parses.
        types: the dataclasses behind it.
        aliases: short names of options.
        usage: what follows the command's name on the first line.
        everything: show the options of TRL and transformers that are in no group of ours, too.
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
        "--config", metavar="FILE.yaml", help="Options by name; those of the command line win."
    )
    config.complete = shtab.FILE  # type: ignore[attr-defined]
    general.add_argument("-h", "--help", action="store_true", default=argparse.SUPPRESS, help="Show this and exit.")
    if inherited:
        general.add_argument(
            "--help_all", action="store_true", default=argparse.SUPPRESS, help=f"Show the options {INHERITED}, too."
        )
    for title, names in groups.items():
        group = shown.add_argument_group(title)
        for name in names:
            _add(group, actions[name], hints[name], [short[name]] if name in short else [], brief=not everything)
    if everything and inherited:
        group = shown.add_argument_group(f"{INHERITED} ({len(inherited)} options)")
        for name in inherited:
            _add(group, actions[name], hints[name], [], brief=False)
    return shown


def grouped(types: Sequence[type]) -> tuple[dict[str, list[str]], list[str]]:
    """The options of a command by group, and those that are TRL's and in none.

    An option that gtpo defines and no group names is in a group of its dataclass, by the first line of its docstring.
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
            elif owner.__module__.startswith("gtpo"):
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


def _owner(kind: type, name: str) -> type:
    """The class that defines a field, of those that a dataclass inherits from."""
    return next(base for base in kind.__mro__ if name in inspect.get_annotations(base))


def _add(group: Any, action: argparse.Action, hint: Any, aliases: Sequence[str], *, brief: bool) -> None:
    about = WORDS.get(action.dest, action.help or "")
    if brief and len(about) > _LONG:
        about = about.split(". ")[0].rstrip(".") + "."
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
    bases = (base for kind in types for base in (kind, *kind.__bases__))
    theirs = dict.fromkeys(base.__name__ for base in bases if base.__module__.startswith("trl"))
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
