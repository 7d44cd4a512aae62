"""Calls for notebooks: `gtpo.evaluate` and `gtpo.train`, which take a model and problems in many forms.

They do what the commands `gtpo eval` and `gtpo train` do, with options of the same names. For lower-level control (your
own engine, backend or trainer) use `gtpo.rollout`, `gtpo.evaluation` and `gtpo.training`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from gtpo import models
from gtpo._text import did_you_mean, say
from gtpo.errors import ConfigError
from gtpo.evaluation.progress import progress_bar
from gtpo.evaluation.result import EvalResult, protocol_of
from gtpo.evaluation.runner import evaluate as evaluate_problems
from gtpo.rollout import Environments, RolloutConfig, RolloutEngine, build_engine, fitting
from gtpo.rollout.backends import Backend, TransformersBackend
from gtpo.sandbox import Sandbox
from gtpo.scoring import RewardConfig, make_scorer
from gtpo.tasks.problems import Problem
from gtpo.tasks.row_forms import Columns
from gtpo.tasks.sources import problems_from, verifiable
from gtpo.tasks.verifiers import Verifier
from gtpo.turn_rewards import TurnRewardFunction, name_of


@dataclass
class EvalOptions(RewardConfig, RolloutConfig):
    """How rollouts are generated and scored: the options of `gtpo eval`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_rewards()


def evaluate(
    model: Any,
    problems: Any,
    *,
    tools: Any = None,
    environment_factory: Any = None,
    samples: int = 1,
    seed: int = 0,
    limit: int | None = None,
    columns: Columns = None,
    processing_class: Any = None,
    verifier: str | Verifier = "auto",
    reward_funcs: Any = None,
    turn_reward_funcs: Sequence[str | TurnRewardFunction] | None = None,
    sandbox: Sandbox | None = None,
    progress: bool = True,
    **options: Any,
) -> EvalResult:
    """Roll out problems and score the rollouts.

    Args:
        model: a folder or Hub id, a loaded model, or a backend (`gtpo.rollout.backends`).
        problems: a source as in `gtpo eval --problems`, a list of dictionaries or of problems, or a `Dataset`; rows of
            published data sets are read as they are. None: the problems that the option `environment` supplies.
        tools: as in `--tools`; or a list of functions, names and tools. None: Python, or no tool besides those of an
            environment.
        environment_factory: a class with `reset`, whose methods are tools (`gtpo.rollout.environment`); the option
            `environment` takes one by name.
        samples: number of rollouts per problem.
        seed: seed of the sampling.
        limit: use the first `limit` problems only.
        columns: which column holds which field, for rows that can't be read as they are.
        processing_class: the tokenizer; None: the model's own.
        verifier: checks final answers; a name as in `--verifier`, or a verifier.
        reward_funcs, turn_reward_funcs: names as in `gtpo eval`, or functions.
        sandbox: runs the model's code; None: the one set by the options.
        progress: whether to show a progress bar.
        options: any other option of rollouts and rewards, such as `max_turns`, `temperature` or `success_threshold`.

    Returns:
        The result; `trajectories` holds the rollouts and `figures` the metrics computed from them.

    Raises:
        ConfigError: an option is unknown or can't be used.
        DataError: a row can't be used.
    """
    names, functions = _told_apart(reward_funcs)
    turn_names, turn_functions = _told_apart(turn_reward_funcs)
    chosen = {"reward_funcs": names, "turn_reward_funcs": turn_names, "verifier": verifier, "tools": tools}
    config = EvalOptions(**_known(EvalOptions, {**options, **_named_only(chosen)}))
    environments, tools = _environments(config, environment_factory, tools)
    scorer = make_scorer(
        config,
        reward_funcs=functions,
        verifier=_given(verifier),
        turn_reward_funcs=_turn_functions(turn_functions),
        environments=environments,
    )
    try:
        scorer.check_functions()
        found = _problems(problems, environments, limit=limit, columns=columns, answers=scorer.verifier is not None)
        found = verifiable(found, scorer.verifier, say)
        tokenizer = processing_class if processing_class is not None else _tokenizer_of(model)
        with _engine(config, tokenizer, tools, sandbox, environments) as engine:
            backend = _backend(model, config)
            found = fitting(found, engine, engine.max_context(backend), say)
            rewards = config.recorded_rewards() | {
                name: [one if isinstance(one, str) else name_of(one) for one in given]
                for name, given in (("reward_funcs", functions), ("turn_reward_funcs", turn_functions))
                if given is not None
            }
            protocol = protocol_of(config, engine, found, samples=samples, seed=seed, rewards=rewards)
            if not isinstance(tools, str | None):
                used = {"tools": ",".join(engine.tools) or "none"}
                used |= {"environment": environments.name} if environments else {}
                protocol = replace(protocol, rollout={**protocol.rollout, **used})
            with progress_bar(len(found) * samples, "evaluate", enabled=progress) as bar:
                return evaluate_problems(
                    found,
                    engine,
                    backend,
                    scorer,
                    protocol,
                    about={"model": {"name": _name_of(model)}, "tool_format": engine.encoder.choice},
                    max_concurrency=config.max_concurrency,
                    progress=bar,
                    keep_trajectories=True,
                )
    finally:
        if not _given(verifier):
            scorer.close()


def train(
    model: Any,
    problems: Any,
    *,
    tools: Any = None,
    environment_factory: Any = None,
    limit: int | None = None,
    columns: Columns = None,
    processing_class: Any = None,
    verifier: str | Verifier = "auto",
    reward_funcs: Any = None,
    turn_reward_funcs: Sequence[str | TurnRewardFunction] | None = None,
    sandbox: Sandbox | None = None,
    resume: bool | Literal["auto"] = False,
    resume_with_changes: bool = False,
    callbacks: Sequence[Any] | None = None,
    peft_config: Any = None,
    **options: Any,
) -> Any:
    """Train a model with GTPO, record the run and save what was trained.

    Args:
        model: a folder or Hub id, or a loaded model, which is trained in place.
        problems, tools, environment_factory, limit, columns, processing_class, verifier: see `gtpo.evaluate`.
        reward_funcs, turn_reward_funcs, sandbox: see `gtpo.evaluate`.
        resume, resume_with_changes: see `gtpo.training.run.train`.
        callbacks: callbacks of the trainer.
        peft_config: configuration of an adapter to train.
        options: any option of `GTPOConfig`, such as `run_dir`, `max_steps` or `num_generations`.

    Returns:
        `gtpo.training.run.TrainResult`: `run_dir`, which `gtpo.report.load` reads, `model_dir` and `steps`.

    Raises:
        ConfigError: an option is unknown or can't be used, or the directory already holds a run.
        DataError: a row can't be used.
    """
    from gtpo.training.config import GTPOConfig
    from gtpo.training.run import train as train_problems

    names, functions = _told_apart(reward_funcs)
    turn_names, turn_functions = _told_apart(turn_reward_funcs)
    chosen = {"reward_funcs": names, "turn_reward_funcs": turn_names, "verifier": verifier, "tools": tools}
    args = GTPOConfig(**_known(GTPOConfig, {**options, **_named_only(chosen)}))
    environments, tools = _environments(args, environment_factory, tools)
    scorer = make_scorer(args, reward_funcs=functions, verifier=_given(verifier), environments=environments)
    found = _problems(problems, environments, limit=limit, columns=columns, answers=scorer.verifier is not None)
    found = verifiable(found, scorer.verifier, say)
    tokenizer = processing_class if processing_class is not None else _tokenizer_of(model)
    with closing(scorer), _engine(args, tokenizer, tools, sandbox, environments) as engine:
        return train_problems(
            models.load_model(str(model), training=True) if isinstance(model, str | Path) else model,
            tokenizer,
            found,
            args,
            resume=resume,
            resume_with_changes=resume_with_changes,
            provenance={"problems": {"train_file": str(problems) if isinstance(problems, str | Path) else None}}
            | {"model": {"model_name_or_path": _name_of(model)}},
            label=args.algorithm,
            engine=engine,
            verifier=scorer.verifier,
            reward_funcs=functions,
            turn_reward_funcs=_turn_functions(turn_functions),
            callbacks=callbacks,
            peft_config=peft_config,
        )


def _told_apart(given: Any) -> tuple[list[str] | None, list[Any] | None]:
    """A list of names only becomes an option; a list that contains a function is passed on as it is."""
    if given is None:
        return None, None
    listed = list(given) if isinstance(given, list | tuple) else [given]
    return (listed, None) if all(isinstance(one, str) for one in listed) else (None, listed)


def _turn_functions(given: Sequence[Any] | None) -> list[TurnRewardFunction] | None:
    from gtpo.turn_rewards import get_turn_reward

    return None if given is None else [get_turn_reward(one) if isinstance(one, str) else one for one in given]


def _named_only(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """The values that a configuration can hold: names, and lists of names."""
    return {
        name: value
        for name, value in chosen.items()
        if isinstance(value, str) or (isinstance(value, list) and name != "tools")
    }


def _given(verifier: str | Verifier) -> Verifier | None:
    return None if isinstance(verifier, str) else verifier


def _known(kind: type[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options.

    Raises:
        ConfigError: an option is unknown; names the nearest one.
    """
    known = [item.name for item in fields(kind)]
    for name in options:
        if name not in known:
            raise ConfigError(f"there is no option {name!r}{did_you_mean(name, known)}")
    return dict(options)


def _environments(config: Any, factory: Any, tools: Any) -> tuple[Environments | None, Any]:
    """The environments that were asked for, and the further tools: none beside environments, unless asked for."""
    if factory is None:
        return config.make_environments(), tools
    return Environments(factory, config.environment_timeout_s), [] if tools is None else tools


def _problems(given: Any, environments: Environments | None, **options: Any) -> list[Problem]:
    if given is None and environments and (brought := environments.problems()):
        return brought[: options["limit"]]
    return problems_from(given, **options)


@contextmanager
def _engine(
    config: Any, tokenizer: Any, tools: Any, sandbox: Sandbox | None, environments: Environments | None
) -> Iterator[RolloutEngine]:
    """The engine; a sandbox that was started for it is closed at the end."""
    listed = [tools] if callable(tools) or hasattr(tools, "spec") else tools
    names = config.tool_names() if isinstance(tools, str | None) else [name for name in listed if isinstance(name, str)]
    started = config.make_sandbox() if sandbox is None and "python" in names else None
    try:
        own = None if isinstance(tools, str | None) else config.given_tools(listed, sandbox or started)
        yield build_engine(config, tokenizer, tools=own, sandbox=sandbox or started, environments=environments)
    finally:
        if started is not None:
            started.close()


def _backend(model: Any, config: RolloutConfig) -> Backend:
    if hasattr(model, "serve"):
        return model
    if isinstance(model, str | Path):
        model = models.load_model(str(model))
    return TransformersBackend(model, batch_size=config.max_concurrency or 64)


def _tokenizer_of(model: Any) -> Any:
    """The tokenizer of a model that was given by name, or that records where it was loaded from.

    Raises:
        ConfigError: the tokenizer is unknown.
    """
    if not isinstance(model, str | Path) and not _name_of(model):
        raise ConfigError("the model's tokenizer is unknown: give it as processing_class=")
    return models.load_tokenizer(_name_of(model))


def _name_of(model: Any) -> str:
    if isinstance(model, str | Path):
        return str(model)
    config = getattr(model, "config", None) or getattr(getattr(model, "model", None), "config", None)
    return str(getattr(config, "_name_or_path", "") or "")
