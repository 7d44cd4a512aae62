"""How `GTPOTrainer` handles TRL's arguments `tools` and `environment_factory`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset

from gtpo.errors import ConfigError
from gtpo.rollout import Environments, Prompts, RolloutEngine, build_engine
from gtpo.sandbox import Sandbox
from gtpo.training.config import GTPOConfig, check_enough_problems
from gtpo.training.data import problem_dataset


def made_engine(
    args: GTPOConfig,
    tokenizer: Any,
    tools: Sequence[Any] | None,
    environment_factory: Callable[[], Any] | None,
    sandbox: Sandbox | None,
) -> RolloutEngine:
    """The engine that the trainer's arguments describe.

    Args:
        args: the settings; their tools are used if none are given, except that an environment has no default tools.
        tokenizer: a tokenizer with a chat template.
        tools: functions, or gtpo tools.
        environment_factory: see `gtpo.rollout.environment`.
        sandbox: runs the model's code.

    Raises:
        ConfigError, TemplateError: see `build_engine`; or several environments by name, which is not supported.
    """
    if isinstance(environment_factory, Mapping):
        raise ConfigError(
            "environment_factory: a mapping of several environments is not supported; give one class whose reset "
            "chooses by a column"
        )
    environments = Environments(environment_factory, args.environment_timeout_s) if environment_factory else None
    if tools is None and environments and args.tools is None:
        tools = []
    own = None if tools is None else args.given_tools(tools, sandbox)
    return build_engine(args, tokenizer, tools=own, sandbox=sandbox, environments=environments)


def check_data(environments: Environments, dataset: Any, args: GTPOConfig, prompts: Prompts) -> Any:
    """The data set; without one, the environment's own problems, or rows with an empty prompt, which `reset` fills.

    Raises:
        ConfigError: `reset` does not take the columns, or there is neither a data set nor `max_steps`.
    """
    if dataset is None and (problems := environments.problems()):
        dataset = problem_dataset(problems, prompts)
        check_enough_problems(len(dataset), args)
    if dataset is None:
        if args.max_steps <= 0:
            raise ConfigError(
                f"without a train_dataset the environment {environments.name} makes the prompts, so the length of "
                "training is unknown: give max_steps above 0"
            )
        dataset = Dataset.from_dict({"prompt": [[{"role": "user", "content": ""}]] * args.groups_per_batch})
    names = getattr(dataset, "column_names", None)
    if names and "extras" not in names:  # those of problems have further fields, which the first batch is checked for
        environments.check_columns(names)
    return dataset


def reset_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `reset` for a row: the columns, and the further fields of a problem by their names."""
    extras = row.get("extras")
    if not isinstance(extras, str):
        return dict(row)
    return {**json.loads(extras or "{}"), **{name: value for name, value in row.items() if name != "extras"}}
