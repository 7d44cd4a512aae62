"""The one place where a configuration becomes a rollout engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

from gtpo.errors import DataError
from gtpo.rollout.config import PromptConfig, RolloutConfig, distinct
from gtpo.rollout.encoding import Encoder
from gtpo.rollout.environment import Environments
from gtpo.rollout.formats import ToolFormat, get_format
from gtpo.rollout.loop import RolloutEngine
from gtpo.rollout.prompts import Prompts
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import Tool
from gtpo.sandbox import Sandbox
from gtpo.tasks.problems import Problem


def build_engine(
    config: RolloutConfig,
    tokenizer: Any,
    *,
    tools: Sequence[Tool] | None = None,
    sandbox: Sandbox | None = None,
    environments: Environments | None = None,
) -> RolloutEngine:
    """Build all that a rollout needs besides a model: prompts, encoder, tools, environments, limits, sampling.

    Args:
        config: the configuration; of `verifier`, only what it says about the form of the answer takes effect here.
        tokenizer: a tokenizer with a chat template.
        tools: used instead of the tools that the configuration asks for.
        sandbox: runs Python, instead of the sandbox that the configuration asks for.
        environments: used instead of those that the configuration asks for.

    Raises:
        ConfigError, DataError, SandboxError: see `RolloutConfig.make_tools` and `make_environments`.
        TemplateError: see `gtpo.rollout.choosing.make_encoder`.
    """
    environments = environments or config.make_environments()
    tools = config.make_tools(sandbox) if tools is None else tools
    specs = distinct([*(tool.spec for tool in tools), *(environments.specs if environments else ())])
    encoder = build_encoder(config, tokenizer, specs)
    return RolloutEngine(
        encoder,
        tools,
        config.limits(),
        prompts=build_prompts(config, encoder.format, environments),
        sampling=config.sampling(),
        max_concurrency=config.max_concurrency,
        environments=environments,
    )


def build_prompts(
    config: RolloutConfig, tool_format: ToolFormat | None = None, environments: Environments | None = None
) -> Prompts:
    """Build the object that makes the prompts of problems.

    Args:
        config: the configuration.
        tool_format: the tool-call syntax, with the tools; by default the one that the configuration names.
        environments: if they give the outcome reward, they decide what an answer is, and the prompt does not say it.

    Raises:
        ConfigError: the file of instructions can't be used, or the format depends on the model and was not given.
    """
    tool_format = tool_format or get_format(config.tool_format, config.specs())
    verifier = None if config.verifier == "auto" else config.verifier
    asks = not (environments and environments.has_reward)
    return Prompts(tool_format, config.system_prompt, config.answer_instructions(), verifier, asks_for_answer=asks)


def build_encoder(config: PromptConfig, tokenizer: Any, specs: Sequence[ToolSpec]) -> Encoder:
    """Build the encoder of conversations with these tools.

    Raises:
        ConfigError: the format can't express a tool.
        TemplateError: see `gtpo.rollout.choosing.make_encoder`.
    """
    from gtpo.rollout.choosing import make_encoder  # loads the library `renderers`, which takes most of a second

    template_kwargs = cast("dict[str, Any] | None", config.chat_template_kwargs)
    return make_encoder(tokenizer, config.tool_format, specs, template_kwargs=template_kwargs)


def fitting(
    problems: Sequence[Problem], engine: RolloutEngine, max_context: int, say: Callable[[str], None]
) -> list[Problem]:
    """The problems whose prompts leave room in the context; reports which ones are left out, and why.

    Args:
        problems: the problems.
        engine: makes their prompts.
        max_context: maximum context length, in tokens.
        say: called with a line for each problem that is left out.

    Raises:
        DataError: no prompt leaves room.
    """
    too_long: dict[str, str] = {}
    for problem in problems:
        length = len(engine.encoder.prompt_ids(engine.prompts.messages(problem)))
        if length >= max_context:
            too_long[problem.id] = f"its prompt of {length} tokens leaves no room in a context of {max_context}"
    left = [problem for problem in problems if problem.id not in too_long]
    if not left:
        raise DataError(
            f"the prompts of all {len(problems)} problems fill the context of {max_context} tokens; shorten them or "
            "raise max_context"
        )
    for problem_id, why in too_long.items():
        say(f"left out: problem {problem_id}: {why}")
    return left
