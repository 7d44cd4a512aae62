"""The rollouts of a generation batch, group by group: each group is handled as soon as it is complete.

A group whose rollouts all have the same reward has no advantage under GRPO, nor under GTPO with `zero_uniform_groups`.
With `--resample_uniform` such a group is replaced by one of another problem, as in DAPO's dynamic sampling
(arXiv 2503.14476, section 3.2), as soon as it is complete. The groups of a batch do not depend on which of them were
fast: each uniform group draws one more, in a fixed order, until there are enough or none may be drawn.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from gtpo.rollout import RolloutEngine
from gtpo.rollout.backends import Backend
from gtpo.rollout.encoding import Messages
from gtpo.rollout.loop import Progress, RolloutSession
from gtpo.training.own_environment import reset_columns
from gtpo.types import Trajectory

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Draw:
    """A problem for a group of rollouts.

    Attributes:
        rows: rows of the data set, one per rollout.
        index: index of the row in the data set; None if the rows belong to several problems.
    """

    rows: tuple[Row, ...]
    index: int | None = None


@dataclass(frozen=True)
class Group:
    """Finished rollouts of one problem.

    Attributes:
        number: number of the draw in its batch.
        draw: the problem.
        trajectories, environments: one per row; no environment is None.
        weights_step: the optimizer step after which the weights were taken from which all turns were sampled.
    """

    number: int
    draw: Draw
    trajectories: tuple[Trajectory, ...]
    environments: tuple[Any, ...] = ()
    weights_step: int = 0


@dataclass(frozen=True)
class Spread:
    """Summary of the rewards of a group.

    Attributes:
        differs: whether two of its rollouts have different outcome rewards.
        scored, passed: number of rollouts with a reward, and of those among them that passed.
    """

    differs: bool
    scored: int = 0
    passed: int = 0


@dataclass
class Counts:
    """Counts over the rollouts of a batch.

    Attributes:
        drawn, uniform, replaced: number of groups drawn, of those with a single reward, and of those among these that
            were replaced.
        scored, passed: rollouts with a reward in all groups drawn, and those that passed, if `GroupRollouts.spread` is
            used.
        tools_s: wall seconds in which rollouts waited for tools and environments only.
    """

    drawn: int = 0
    uniform: int = 0
    replaced: int = 0
    scored: int = 0
    passed: int = 0
    tools_s: float = 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class GroupRollouts:
    """Generates the rollouts of groups.

    Attributes:
        engine: generates rollouts.
        prompt_of: returns the prompt of a row, as chat messages.
        spread: returns the `Spread` of a group; called in a thread. None: no group is replaced.
    """

    engine: RolloutEngine
    prompt_of: Callable[[Row], Messages]
    spread: Callable[[Group], Spread] | None = None

    async def run(
        self,
        backend: Backend,
        draws: Sequence[Draw],
        spare: Iterator[Draw],
        *,
        weights_step: int,
        seed: int,
        progress: Progress,
        on_group: Callable[[Group], None],
    ) -> Counts:
        """Generate as many groups as there are draws.

        Args:
            backend: generates tokens.
            draws: the problems of the batch.
            spare: problems to draw as replacements for those whose group is uniform.
            weights_step: see `Group`.
            seed: seed of the sampling.
            progress: called with the number of rollouts that have ended and of those that were started.
            on_group: called with each group as soon as it is certain to be in the batch. Uniform groups, if they are
                needed to fill the batch, come last.

        Raises:
            ConfigError, RewardError: see `RolloutEngine.run`.
        """
        counts = Counts()
        begun = ended = 0
        uniform: list[Group] = []

        def one_ended(number: int, trajectory: Trajectory) -> None:
            nonlocal ended
            ended += 1
            progress("rollouts", ended, begun)

        async def whole(session: RolloutSession, number: int, draw: Draw, first: int) -> tuple[Group, Spread]:
            tasks = [
                session.start(first + i, self.prompt_of(row), reset_columns(row), one_ended)
                for i, row in enumerate(draw.rows)
            ]
            trajectories = tuple(await asyncio.gather(*tasks))
            held = tuple(map(session.environment_of, tasks)) if self.engine.environments else ()
            group = Group(number, draw, trajectories, held, weights_step)
            return group, Spread(True) if self.spread is None else await asyncio.to_thread(self.spread, group)

        size = sum(len(draw.rows) for draw in draws)
        async with self.engine.session(backend, size, seed=seed, mask_failures=True, hold_environments=True) as session:
            waiting = set()

            def begin(draw: Draw) -> None:
                nonlocal begun
                waiting.add(asyncio.ensure_future(whole(session, counts.drawn, draw, begun)))
                begun += len(draw.rows)
                counts.drawn += 1

            try:
                for draw in draws:
                    begin(draw)
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    for group, spread in [task.result() for task in done]:
                        counts.scored += spread.scored
                        counts.passed += spread.passed
                        if spread.differs:
                            on_group(group)
                            continue
                        uniform.append(group)
                        if (more := next(spare, None)) is not None:
                            begin(more)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.gather(*waiting, return_exceptions=True)
        counts.uniform = len(uniform)
        missing = len(draws) - (counts.drawn - len(uniform))
        uniform.sort(key=lambda group: group.number)
        for group in uniform[:missing]:
            on_group(group)
        if self.engine.environments:
            for group in uniform[missing:]:
                self.engine.environments.release(group.environments)
        counts.replaced = len(uniform) - missing
        counts.tools_s = session.clock.tools_s
        return counts
