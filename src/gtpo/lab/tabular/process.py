"""The process: a task that takes a number of calls, and a policy that may also make bad calls, or answer too early.

At each turn the policy takes one of four actions. `good`: the call that advances the task by one step. `malformed`: a
call that can't be carried out; nothing changes. `wrong`: a call that is carried out and spoils the result, which the
policy does not see. `answer`: ends the rollout, which passes if all steps of the task are done and none was spoiled. A
rollout that has not answered by its last turn fails. The policy sees how many of its calls were carried out, but not
whether they were right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ACTIONS = ("good", "malformed", "wrong", "answer")
GOOD, MALFORMED, WRONG, ANSWER = range(4)


@dataclass(frozen=True)
class Rollouts:
    """Rollouts as tensors: B rollouts of at most K turns.

    Attributes:
        states_B_K: int64, what the policy saw: calls carried out so far, at most the process's `steps`.
        actions_B_K: int64, the actions it took.
        num_turns_B: int64, number of turns.
        passed_B: bool, whether the rollout passed.
    """

    states_B_K: Tensor
    actions_B_K: Tensor
    num_turns_B: Tensor
    passed_B: Tensor

    @property
    def active_B_K(self) -> Tensor:
        """Whether there is a turn."""
        return torch.arange(self.states_B_K.shape[1]) < self.num_turns_B[:, None]

    @property
    def invalid_B_K(self) -> Tensor:
        """Turns with a malformed call."""
        return self.active_B_K & (self.actions_B_K == MALFORMED)

    @property
    def has_call_B(self) -> Tensor:
        """Whether any turn makes a call, malformed or not."""
        return (self.active_B_K & (self.actions_B_K != ANSWER)).any(dim=1)

    def code_B_D(self, states: int) -> Tensor:
        """A stand-in for the code of a rollout: how often each executed call was made in each state."""
        calls = self.active_B_K & ((self.actions_B_K == GOOD) | (self.actions_B_K == WRONG))
        words_B_K = self.states_B_K * 2 + (self.actions_B_K == WRONG)
        counts = torch.zeros(len(calls), 2 * states, dtype=torch.float64)
        return counts.scatter_add(1, words_B_K, calls.double())


@dataclass(frozen=True)
class CallProcess:
    """The process that the module describes.

    Attributes:
        steps: number of calls that the task takes, at least 1.
        max_turns: maximum number of turns per rollout, more than `steps`.
    """

    steps: int
    max_turns: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.max_turns <= self.steps:
            raise ValueError(f"needs steps >= 1 and max_turns > steps, got {self.steps} and {self.max_turns}")

    @property
    def states(self) -> int:
        """Rows of the policy's table."""
        return self.steps + 1

    def success(self, logits_S_A: Tensor) -> Tensor:
        """The probability of passing; differentiable. With leading axes, one value for each table."""
        policy = logits_S_A.softmax(dim=-1)
        good, malformed, answer = policy[..., GOOD], policy[..., MALFORMED], policy[..., -1, ANSWER]
        start = torch.nn.functional.one_hot(torch.tensor(0), self.states).to(policy)
        unspoiled = start.expand_as(good)
        passed = torch.zeros_like(answer)
        for _ in range(self.max_turns):
            passed = passed + unspoiled[..., -1] * answer
            moved = unspoiled * good
            arrived = torch.cat([torch.zeros_like(moved[..., :1]), moved[..., :-1]], dim=-1)
            idle = torch.cat([torch.zeros_like(moved[..., :-1]), moved[..., -1:]], dim=-1)  # nothing was left to do
            unspoiled = arrived + idle + unspoiled * malformed
        return passed

    def true_gradient(self, logits_S_A: Tensor) -> Tensor:
        """The gradient of `success` with respect to the logits, in their shape."""
        leaf = logits_S_A.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(self.success(leaf), leaf)
        return gradient

    def reward_gradient(self, logits_S_A: Tensor, format_penalty: float = -0.1) -> Tensor:
        """The gradient of the expected sum of a rollout's turn rewards, without shaping, in the logits' shape."""
        leaf = logits_S_A.detach().clone().requires_grad_()
        every = self.every_rollout()
        probability = self.log_probabilities(leaf, every).exp()
        penalised = every.invalid_B_K.sum(dim=1) + (~every.has_call_B).long()
        reward = (probability * (every.passed_B.double() + format_penalty * penalised)).sum()
        (gradient,) = torch.autograd.grad(reward, leaf)
        return gradient

    def log_probabilities(self, logits_S_A: Tensor, rollouts: Rollouts) -> Tensor:
        """Log-probability of each rollout."""
        chosen = logits_S_A.log_softmax(dim=-1)[rollouts.states_B_K, rollouts.actions_B_K]
        return (chosen * rollouts.active_B_K).sum(dim=1)

    def every_rollout(self) -> Rollouts:
        """All possible rollouts: about 1.5 * 3^max_turns."""
        found: list[list[int]] = []
        open_ends: list[list[int]] = [[]]
        for _ in range(self.max_turns):
            found += [[*actions, ANSWER] for actions in open_ends]
            open_ends = [[*actions, action] for actions in open_ends for action in (GOOD, MALFORMED, WRONG)]
        return self.rollouts_of([*found, *open_ends])

    def rollouts_of(self, sequences: Sequence[Sequence[int]]) -> Rollouts:
        """The rollouts with these actions."""
        num_turns_B = torch.tensor([len(actions) for actions in sequences])
        actions_B_K = torch.full((len(sequences), self.max_turns), ANSWER)
        for row, actions in enumerate(sequences):
            actions_B_K[row, : len(actions)] = torch.tensor(actions)
        return self._finished(actions_B_K, num_turns_B)

    def sample(self, logits_B_S_A: Tensor, generator: torch.Generator) -> Rollouts:
        """One rollout for each table of logits."""
        count = len(logits_B_S_A)
        policy = logits_B_S_A.detach().softmax(dim=-1)
        rows = torch.arange(count)
        state_B = torch.zeros(count, dtype=torch.long)
        ended_B = torch.zeros(count, dtype=torch.bool)
        actions_B_K = torch.full((count, self.max_turns), ANSWER)
        num_turns_B = torch.full((count,), self.max_turns)
        for turn in range(self.max_turns):
            action_B = torch.multinomial(policy[rows, state_B], 1, generator=generator)[:, 0]
            actions_B_K[:, turn] = torch.where(ended_B, ANSWER, action_B)
            ends = ~ended_B & (action_B == ANSWER)
            num_turns_B = torch.where(ends, turn + 1, num_turns_B)
            ended_B = ended_B | ends
            carried_out = ~ended_B & (action_B != MALFORMED)
            state_B = (state_B + carried_out.long()).clamp(max=self.steps)
        return self._finished(actions_B_K, num_turns_B)

    def _finished(self, actions_B_K: Tensor, num_turns_B: Tensor) -> Rollouts:
        """Derive states and outcomes from the actions. Past the last turn the action is `answer`."""
        carried_out = ((actions_B_K == GOOD) | (actions_B_K == WRONG)).long()
        before = carried_out.cumsum(dim=1) - carried_out
        states_B_K = before.clamp(max=self.steps)
        calls_B, wrong_B = carried_out.sum(dim=1), (actions_B_K == WRONG).any(dim=1)
        answered_B = actions_B_K.gather(1, num_turns_B[:, None] - 1)[:, 0] == ANSWER
        return Rollouts(states_B_K, actions_B_K, num_turns_B, answered_B & ~wrong_B & (calls_B >= self.steps))


def policy_with_success(
    process: CallProcess, success: float, *, faults: tuple[float, float, float] = (0.4, 0.3, 0.3)
) -> Tensor:
    """Logits of a policy with this success rate.

    In every state but the last, the policy deviates from the good call with the same probability, which `faults` splits
    over malformed, wrong and answer. In the last state it deviates from the answer with that probability, split in the
    same way over malformed, wrong and a needless good call.

    Args:
        process: the process.
        success: success rate in (0, 1), within reach of such a policy.
        faults: shares that sum to 1.

    Raises:
        ValueError: no such policy has this success rate.
    """

    def logits(fault: float) -> Tensor:
        malformed, wrong, answer = (fault * share for share in faults)
        table = torch.tensor([[1 - fault, malformed, wrong, answer]] * process.states, dtype=torch.float64)
        table[-1] = torch.tensor([answer, malformed, wrong, 1 - fault])
        return table.clamp(min=1e-12).log()

    low, high = 1e-9, 1 - 1e-9
    if not float(process.success(logits(high))) < success < float(process.success(logits(low))):
        raise ValueError(f"no policy of this kind has a success rate of {success}")
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if float(process.success(logits(middle))) > success else (low, middle)
    return logits((low + high) / 2)
