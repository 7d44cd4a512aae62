"""Environments as in TRL's `environment_factory`: one instance per rollout, whose public methods are tools.

    class Game:
        def reset(self, **columns): ...        # None, or text that is appended to the prompt
        def move(self, to: str) -> str: ...    # a tool: any public method with type hints and a docstring
        def get_reward(self) -> float: ...     # optional: the outcome reward

Three optional additions to TRL: `get_turn_reward()` is called once after each turn; `done`, an attribute or property,
ends the rollout after the turn in which it became true; `respond(message)` is called with each turn that makes no call
(without its thoughts) and returns the text of the next user message, or None to end the rollout.

An instance runs one call at a time. A sync method runs in its own thread, an async method in the event loop of a thread
that all instances share. A call that exceeds its time limit is ended; a sync call goes on in its thread, the instance
takes no other call until it returns, and no other rollout gets the instance.
An exception in a tool is shown to the model. An exception in any other method is a failure of the environment, which
masks the rollout (`gtpo.failures`); a value of the wrong type is an error in the class, which ends the run.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import inspect
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import Any

from gtpo._own_code import described
from gtpo.errors import ConfigError, EnvironmentFailedError
from gtpo.rollout.function_tool import TIMEOUT_S, arguments_of, as_result, raised, spec_of, timed_out
from gtpo.rollout.tool_spec import ToolSpec
from gtpo.rollout.tool_threads import MOST_STUCK, LateError, Threads, ToolStuckError, fulfil
from gtpo.rollout.tools import ToolResult
from gtpo.tasks.problems import Problem
from gtpo.turn_rewards import checked
from gtpo.types import ToolCall, Trajectory

RESERVED = ("reset", "get_reward", "get_turn_reward", "respond", "done")
"""Names of an environment's methods and attributes that are not tools."""


class Environments:
    """Creates the environments of a run, and gives each to one rollout at a time.

    An instance whose rollout has ended is used again, after `reset`, as in TRL.

    Args:
        factory: a class, or a callable without arguments that returns an environment. It is called once to find out
            which methods the environment has.
        timeout_s: time limit per call of an environment, in wall-clock seconds, above 0.
        specs: the methods that are tools; by default all public ones.

    Raises:
        ConfigError: the environment can't be created, lacks `reset`, or has a public method that can't be a tool; the
            message names the class.

    Attributes:
        name: name of the class, under which its rewards are logged.
        specs: the descriptions of the methods for the model.
        has_reward, has_turn_reward, has_respond: whether the class has these methods.
    """

    takes_trajectory = False
    """Whether `get_reward` gets the prompt and the finished rollout, as environments of other libraries require."""

    def __init__(
        self, factory: Callable[[], Any], timeout_s: float = TIMEOUT_S, *, specs: Sequence[ToolSpec] | None = None
    ) -> None:
        if not callable(factory):
            raise ConfigError(f"environment_factory: {factory!r} is not callable; give a class or a function")
        if not (math.isfinite(timeout_s) and timeout_s > 0):
            raise ConfigError(f"environment_timeout_s must be finite and above 0, got {timeout_s}")
        self._factory, self.timeout_s = factory, timeout_s
        self.coroutines = Threads(_awaited, timeout_s)
        self._stuck: list[EnvironmentUse] = []
        try:
            instance = factory()
        except Exception as error:
            name = getattr(factory, "__name__", repr(factory))
            raise ConfigError(f"environment {name}: can't be created: {described(error)}") from error
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
            if specs is None and not name.startswith("_") and name not in RESERVED
        ) or tuple(specs or ())
        self._takes = inspect.signature(instance.reset)
        self._free = [instance]
        self._held: dict[int, Any] = {}

    def check_columns(self, names: Sequence[str]) -> None:
        """Check that `reset` accepts columns of these names.

        Raises:
            ConfigError: it does not; the message names the class and the remedy.
        """
        try:
            self._takes.bind(**dict.fromkeys(names))
        except TypeError as error:
            raise ConfigError(
                f"environment {self.name}: reset{self._takes} can't take the columns {', '.join(names) or '(none)'}: "
                f"{error}. Name the columns that it needs as parameters, and add **columns for the others"
            ) from error

    def problems(self) -> list[Problem]:
        """The problems that come with the environment; empty if it needs a data set."""
        return []

    def open(self) -> EnvironmentUse:
        """An environment for one rollout.

        Raises:
            EnvironmentFailedError: it can't be created, or too many environments are stuck in a call.
        """
        self._stuck = [use for use in self._stuck if use.busy]
        if len(self._stuck) >= MOST_STUCK:
            raise EnvironmentFailedError(
                f"environment {self.name}: {len(self._stuck)} instances are in a call that exceeded its time limit of "
                f"{self.timeout_s:g} s, and Python can't end a thread: let the method time out by itself"
            )
        with contextlib.suppress(IndexError):  # none is free
            return EnvironmentUse(self, self._free.pop())
        try:
            return EnvironmentUse(self, self._factory())
        except Exception as error:
            raise EnvironmentFailedError(f"environment {self.name}: can't be created: {described(error)}") from error

    def close(self, use: EnvironmentUse, *, hold: bool = False) -> None:
        """Take back the environment of a rollout that is over; with `hold`, it is used again only after `release`."""
        if use.busy:
            self._stuck.append(use)
        elif not use.failed:
            self._held[id(use.instance)] = use.instance
            if not hold:
                self.release([use.instance])

    def release(self, instances: Sequence[Any]) -> None:
        """Let held environments be used again, except those that failed."""
        held = [self._held.pop(id(instance), None) for instance in instances]
        self._free += [instance for instance in held if instance is not None]


class EnvironmentUse:
    """An environment while one rollout uses it; created by `Environments.open`."""

    def __init__(self, of: Environments, instance: Any) -> None:
        self._of, self.instance = of, instance
        self._lock = asyncio.Lock()
        self._running: Future[Any] | None = None
        self.failed = False

    @property
    def busy(self) -> bool:
        """Whether a sync call is still running."""
        return self._running is not None and not self._running.done()

    async def reset(self, columns: Mapping[str, Any]) -> str | None:
        """Start over with a row of the data set; returns the text to append to the prompt, if any.

        Raises:
            EnvironmentFailedError: it raised or took too long.
            ConfigError: it returned something other than text or None.
        """
        return self._text("reset", await self._asked("reset", **columns))

    async def respond(self, message: str) -> str | None:
        """The user's reply to a turn without a call; None: the dialogue is over. Raises the same errors as `reset`."""
        return self._text("respond", await self._asked("respond", message))

    async def reward(self, prompt: Sequence[Mapping[str, Any]], trajectory: Trajectory) -> float | None:
        """The outcome reward of the finished rollout; None if the environment has none for it.

        Raises:
            EnvironmentFailedError: it raised or took too long.
            RewardError: it returned something other than a finite number or None.
        """
        if not self._of.has_reward:
            return None
        about = {"prompt": prompt, "trajectory": trajectory} if self._of.takes_trajectory else {}
        value = await self._asked("get_reward", **about)
        return None if value is None else checked(value, f"environment {self._of.name}", "get_reward")

    async def turn_reward(self) -> float | None:
        """The reward of the turn that has just ended; None if the class gives none. Raises the errors of `reward`."""
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
        """Run a call of a method."""
        try:
            return as_result(await self._call(call.name, **arguments_of(call, spec)))
        except LateError:
            return timed_out(self._of.timeout_s)
        except ToolStuckError:
            raise  # the tool's own failure, which masks the rollout
        except Exception as error:
            return raised(error)

    def _text(self, method: str, value: Any) -> str | None:
        if value is not None and not isinstance(value, str):
            raise ConfigError(
                f"environment {self._of.name}: {method} returned {type(value).__name__}; it must return text or None"
            )
        return value

    async def _asked(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """The return value of a method that is not a tool."""
        with self._failing(method):
            return await self._call(method, *args, **kwargs)

    @contextmanager
    def _failing(self, method: str) -> Iterator[None]:
        try:
            yield
        except LateError as error:
            self.failed = True
            raise EnvironmentFailedError(
                f"environment {self._of.name}: {method} did not return within {self._of.timeout_s:g} s"
            ) from error
        except Exception as error:
            self.failed = True
            said = f"environment {self._of.name}: {method} raised {described(error)}"
            raise EnvironmentFailedError(said) from error

    async def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method, once the calls before it have returned.

        Raises:
            LateError: the call, or an earlier one that is still running, took too long.
            ToolStuckError: too many async calls are still running after their time limit.
        """
        method = getattr(self.instance, name)
        async with self._lock:
            if self._running is not None and self.busy:
                await self._within_time(self._running)
            if inspect.iscoroutinefunction(method):
                return await self._of.coroutines.call({"method": method, "args": args, "kwargs": kwargs})
            running: Future[Any] = Future()
            self._running = running
            call = (fulfil, running, partial(method, *args), kwargs)
            context = contextvars.copy_context()
            threading.Thread(target=context.run, args=call, name="gtpo-environment", daemon=True).start()
            await self._within_time(running)
            return running.result()

    async def _within_time(self, running: Future[Any]) -> None:
        """Wait for a call, up to its time limit."""
        waiting = asyncio.wrap_future(running)
        waiting.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # else asyncio would report it
        done, _ = await asyncio.wait([waiting], timeout=self._of.timeout_s)
        if not done:
            raise LateError


async def _awaited(method: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    return await method(*args, **kwargs)


class EnvironmentTool:
    """A method of a rollout's environment as a `ToolUse`."""

    def __init__(self, environment: EnvironmentUse, spec: ToolSpec) -> None:
        self._environment, self._spec = environment, spec

    async def run(self, call: ToolCall) -> ToolResult:
        """Run one call."""
        return await self._environment.run(call, self._spec)

    async def aclose(self) -> None:
        """Nothing to close: the environment is given back when the rollout ends."""
