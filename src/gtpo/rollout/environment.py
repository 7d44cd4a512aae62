"""Environments as TRL's `environment_factory` has them: one instance per rollout, whose public methods are tools.

    class Game:
        def reset(self, **columns): ...        # None, or text that is appended to the prompt
        def move(self, to: str) -> str: ...    # a tool: any public method with type hints and a docstring
        def get_reward(self) -> float: ...     # optional: the outcome reward

Beyond TRL, each of them optional: `get_turn_reward()`, called once after each turn; `done`, an attribute or property
that ends the rollout after the turn in which it became true; and `respond(message)`, called with a turn that makes no
call (without its thoughts), whose text is the next user message; None ends the rollout.

Methods may be async. Sync ones run in a thread, one call of an instance at a time. A call past its time limit is ended;
a sync one goes on in its thread, the instance takes no other call until it returns, and no other rollout gets it.
What a tool raises is told to the model. What any other method raises is a failure of the environment, which masks the
rollout (`gtpo.failures`); a value of the wrong type is a mistake of the class, which ends the run.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from gtpo._async import in_thread
from gtpo.errors import ConfigError, EnvironmentFailedError
from gtpo.rollout.function_tool import TIMEOUT_S, arguments_of, as_result, raised, spec_of, timed_out
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tools import ToolResult
from gtpo.turn_rewards import checked
from gtpo.types import ToolCall

RESERVED = ("reset", "get_reward", "get_turn_reward", "respond", "done")
"""Names of an environment that are no tools."""


class Environments:
    """Makes the environments of a run, and lends each to one rollout at a time.

    An instance that a rollout gave back is used again, after `reset`, as in TRL.

    Args:
        factory: a class, or anything that returns an environment without arguments. It is called once to see what the
            environment has.
        timeout_s: wall-clock seconds that a call of an environment may take.

    Raises:
        ConfigError: it can't be made, or lacks `reset`, or a public method can't be a tool; names the class.

    Attributes:
        name: of the class; what its rewards are logged as.
        specs: what the model is told of the methods.
        has_reward, has_turn_reward, has_respond: whether the class has these methods.
    """

    def __init__(self, factory: Callable[[], Any], timeout_s: float = TIMEOUT_S) -> None:
        if not callable(factory):
            raise ConfigError(f"environment_factory: {factory!r} is not callable; give a class or a function")
        if not timeout_s > 0:
            raise ConfigError(f"environment_timeout_s must be above 0, got {timeout_s}")
        self._factory, self.timeout_s = factory, timeout_s
        try:
            instance = factory()
        except Exception as error:
            name = getattr(factory, "__name__", repr(factory))
            raise ConfigError(f"environment {name}: can't be made: {type(error).__name__}: {error}") from error
        kind = type(instance)
        self.name = kind.__name__
        methods = dict(inspect.getmembers(kind, predicate=inspect.isfunction))
        if "reset" not in methods:
            raise ConfigError(f"environment {self.name} has no method `reset`: add `def reset(self, **columns)`")
        if "done" in methods:
            raise ConfigError(f"environment {self.name}: `done` is a method; make it an attribute or a property")
        self.has_reward, self.has_turn_reward = "get_reward" in methods, "get_turn_reward" in methods
        self.has_respond = "respond" in methods
        self.specs: tuple[ToolSpec, ...] = tuple(
            spec_of(getattr(instance, name), f"environment {self.name}: the method {name!r}")
            for name in methods
            if not name.startswith("_") and name not in RESERVED
        )
        self._takes = inspect.signature(instance.reset)
        self._free = [instance]
        self._held: list[Any] = []

    def check_columns(self, names: Sequence[str]) -> None:
        """Whether `reset` takes columns of these names.

        Raises:
            ConfigError: it does not; names the class and the remedy.
        """
        try:
            self._takes.bind(**dict.fromkeys(names))
        except TypeError as error:
            raise ConfigError(
                f"environment {self.name}: reset{self._takes} does not fit the columns {', '.join(names) or '(none)'}: "
                f"{error}. Name the columns that it needs, and add **columns for the others"
            ) from error

    def open(self) -> EnvironmentUse:
        """An environment for one rollout.

        Raises:
            EnvironmentFailedError: it can't be made.
        """
        if self._free:
            return EnvironmentUse(self, self._free.pop())
        try:
            return EnvironmentUse(self, self._factory())
        except Exception as error:
            raise EnvironmentFailedError(f"environment {self.name}: {type(error).__name__}: {error}") from error

    def close(self, use: EnvironmentUse, *, hold: bool = False) -> None:
        """The rollout is over; its environment can be used again, with `hold` after `release_held`."""
        if use.reusable:
            (self._held if hold else self._free).append(use.instance)

    def release_held(self) -> None:
        """What was held can be used again."""
        self._free += self._held
        self._held = []


class EnvironmentUse:
    """An environment in the hands of one rollout; made by `Environments.open`."""

    def __init__(self, of: Environments, instance: Any) -> None:
        self._of, self.instance = of, instance
        self._lock = asyncio.Lock()
        self._thread: asyncio.Future[Any] | None = None
        self._failed = False

    @property
    def reusable(self) -> bool:
        """Whether another rollout may have the instance: it did not fail, and no call is still running."""
        return not self._failed and (self._thread is None or self._thread.done())

    async def reset(self, columns: Mapping[str, Any]) -> str | None:
        """Begin anew with a row of the data set; the text that belongs to the prompt.

        Raises:
            EnvironmentFailedError: it raised or took too long.
            ConfigError: it returned something else than text or None.
        """
        return self._text("reset", await self._asked("reset", **columns))

    async def respond(self, message: str) -> str | None:
        """The user's reply to a turn without a call; None: the dialogue is over. Raises as `reset` does."""
        return self._text("respond", await self._asked("respond", message))

    async def reward(self) -> float | None:
        """The outcome reward; None if the environment has none for the rollout.

        Raises:
            EnvironmentFailedError: it raised or took too long.
            RewardError: it returned something else than a finite number or None.
        """
        if not self._of.has_reward:
            return None
        value = await self._asked("get_reward")
        return None if value is None else checked(value, f"environment {self._of.name}", "get_reward")

    async def turn_reward(self) -> float | None:
        """The reward of the turn that has just ended, None if the class gives none. Raises as `reward` does."""
        if not self._of.has_turn_reward:
            return None
        value = await self._asked("get_turn_reward")
        return checked(value, f"environment {self._of.name}", "get_turn_reward")

    def done(self) -> bool:
        """Whether the environment says that the rollout is over.

        Raises:
            EnvironmentFailedError: reading it raised.
        """
        with self._failing("done"):
            return bool(getattr(self.instance, "done", False))

    async def run(self, call: ToolCall, spec: ToolSpec) -> ToolResult:
        """Carry out a call of a method."""
        try:
            return as_result(await self._call(call.name, **arguments_of(call, spec)))
        except _CutOffError:
            return timed_out(self._of.timeout_s)
        except Exception as error:
            return raised(error)

    def _text(self, method: str, value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"environment {self._of.name}: {method} returned {type(value).__name__}; it must return text or None"
            )
        return value

    async def _asked(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What a method returns that is no tool."""
        with self._failing(method):
            return await self._call(method, *args, **kwargs)

    @contextmanager
    def _failing(self, method: str) -> Iterator[None]:
        try:
            yield
        except _CutOffError as error:
            self._failed = True
            raise EnvironmentFailedError(
                f"environment {self._of.name}: {method} did not return within {self._of.timeout_s:g} s"
            ) from error
        except Exception as error:
            self._failed = True
            said = f"{type(error).__name__}: {error}"
            raise EnvironmentFailedError(f"environment {self._of.name}: {method} raised {said}") from error

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method, after the calls before it.

        Raises:
            _CutOffError: it, or one before it that is still running, took too long.
        """
        method = getattr(self.instance, name)
        async with self._lock:
            try:
                async with asyncio.timeout(self._of.timeout_s) as limit:
                    if self._thread is not None and not self._thread.done():
                        await asyncio.wait([self._thread])
                    if inspect.iscoroutinefunction(method):
                        return await method(*args, **kwargs)
                    self._thread = in_thread(method, *args, **kwargs)
                    return await asyncio.shield(self._thread)
            except TimeoutError as error:
                if limit.expired():
                    raise _CutOffError from error
                raise


class EnvironmentTool:
    """A method of a rollout's environment as a `ToolUse`."""

    def __init__(self, environment: EnvironmentUse, spec: ToolSpec) -> None:
        self._environment, self._spec = environment, spec

    async def run(self, call: ToolCall) -> ToolResult:
        """Carry out one call."""
        return await self._environment.run(call, self._spec)

    async def aclose(self) -> None:
        """Nothing to close: the environment is given back when the rollout ends."""


class _CutOffError(Exception):
    """A call was ended at its time limit."""
