r"""GTPO in one file, to be read from top to bottom: task, rollouts, credit, update.

A small transformer learns to use a calculator over several turns. The file needs torch, transformers and
`gtpo.functional`, and runs in less than a minute on one CPU core:

    python examples/gtpo_minimal.py

The question `47+38*12` asks for the operations to be applied from left to right, modulo 100 so that every number has
two digits. The first letter of a line says what the line is:

    Q47+38*12       the prompt
    C47+38          turn 1: the model calls the calculator
    O85             the observation: the result of the call; the model is never trained on it
    C85*12          turn 2
    O20             the observation
    A20             turn 3: a line that is not a call is the final answer

A cold start teaches the model this format on demonstrations of mixed quality. GTPO then repeats three steps:
`sample_rollouts`, `gtpo_advantages`, `clipped_update`.

`gtpo train` adds what this file leaves out: real models and chat templates, a sandbox, verifiers, failure handling,
checkpoints, recorded rollouts, several devices. The formulas here are the library's, with its defaults. Source: arXiv
2511.14846; docs/algorithm.md marks which choices are the paper's and which are ours.
"""

from __future__ import annotations

import argparse
import operator
import random
import re
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from gtpo import functional as F

# Settings

PROMPTS, GROUP_SIZE = 16, 8  # rollouts per update: 16 groups of 8 that answer the same prompt
MAX_TURNS, MAX_TOKENS = 5, 64  # per rollout
GAMMA, ALPHA, FORMAT_PENALTY = 0.9, 0.5, -0.1  # the paper's values
CLIP_LOW, CLIP_HIGH = 0.2, 0.28  # bounds of the clipped surrogate
EPOCHS, MINIBATCHES = 2, 2  # per update
LEARNING_RATE = 1e-3

# Tensor suffixes: _B rollouts in the batch, _G rollouts in a group, _K turns, _T tokens, _V vocabulary.

# The tokenizer: one token per character

VOCABULARY = " \n0123456789+-*QCOA?"
PAD, NEWLINE = VOCABULARY.index(" "), VOCABULARY.index("\n")


def encode(text: str) -> list[int]:
    """The token ids of a text."""
    return [VOCABULARY.index(character) for character in text]


def decode(ids: list[int]) -> str:
    """The text of token ids."""
    return "".join(VOCABULARY[i] for i in ids)


# The task and the tool

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


def calculator(call: str) -> str | None:
    """The tool: the result of a call such as `47+38`, modulo 100; None if the call is invalid."""
    match = re.fullmatch(r"(\d\d)([+*-])(\d\d)", call)
    return f"{OPERATORS[match[2]](int(match[1]), int(match[3])) % 100:02d}" if match else None


def make_question(rng: random.Random) -> str:
    """A number and two or three operations."""
    operations = (f"{rng.choice('+-*')}{rng.randint(2, 99):02d}" for _ in range(rng.randint(2, 3)))
    return f"{rng.randint(0, 99):02d}" + "".join(operations)


def solve(question: str) -> str:
    """The right answer."""
    value = question[:2]
    for operation in re.findall(r"[+*-]\d\d", question):
        value = calculator(value + operation) or ""
    return value


# Rollouts


@dataclass
class Rollout:
    """A prompt, the turns of the model and the observations between them."""

    question: str
    waiting: list[int]  # tokens that the model has to read before it goes on: the prompt or an observation
    ids: list[int] = field(default_factory=list)  # prompt, turns and observations so far
    turn_ids: list[int] = field(default_factory=list)  # per token: its 0-based turn, -1 for prompt and observations
    logprobs: list[float] = field(default_factory=list)  # per token: its log-probability when it was sampled, or 0
    calls: list[str] = field(default_factory=list)  # the valid calls, in order
    invalid: list[bool] = field(default_factory=list)  # per turn: whether it holds an invalid call
    has_call: bool = False  # whether any turn makes a call, valid or not
    done: bool = False
    passed: bool = False  # whether the rollout ended with the right answer

    def advance(self, sampled: int, logprob: float) -> int:
        """Append the next token, waiting or sampled, and return it; after the end of the rollout, return padding."""
        if self.done:
            return PAD
        if self.waiting:
            token, turn, logprob = self.waiting.pop(0), -1, 0.0
        else:
            if self.turn_ids[-1] == -1:  # the previous token belongs to the prompt or an observation: a turn begins
                self.invalid.append(False)
            token, turn = sampled, len(self.invalid) - 1
        self.ids.append(token)
        self.turn_ids.append(turn)
        self.logprobs.append(logprob)
        if turn >= 0 and token == NEWLINE:
            self._end_turn()
        return token

    def _end_turn(self) -> None:
        """Carry out the turn's call, or verify its answer."""
        turn = len(self.invalid) - 1
        text = decode([token for token, j in zip(self.ids, self.turn_ids, strict=True) if j == turn]).strip("\n")
        if text.startswith("C"):
            result = calculator(text[1:])
            self.has_call, self.invalid[-1] = True, result is None
            self.calls += [] if result is None else [text[1:]]
            self.done = len(self.invalid) == MAX_TURNS
            self.waiting = encode(f"O{result or '??'}\n")
        else:
            self.done, self.passed = True, text == f"A{solve(self.question)}"


@torch.no_grad()
def sample_rollouts(model: PreTrainedModel, questions: list[str]) -> list[Rollout]:
    """Sample one rollout per question, all in one batch.

    Each forward pass takes one token per rollout: the next token of a prompt or observation that the rollout still has
    to read, or else the token just sampled. So no rollout waits for another, and the cache needs no padding.
    """
    rollouts = [Rollout(question, waiting=encode(f"Q{question}\n")) for question in questions]
    cache = DynamicCache(config=model.config)
    logprobs_B_V = torch.zeros(len(rollouts), len(VOCABULARY))
    for _ in range(MAX_TOKENS):
        sampled_B = torch.multinomial(logprobs_B_V.exp(), 1)[:, 0]
        logprob_B = logprobs_B_V.gather(1, sampled_B[:, None])[:, 0]
        drawn = zip(rollouts, sampled_B.tolist(), logprob_B.tolist(), strict=True)
        next_B = torch.tensor([rollout.advance(token, logprob) for rollout, token, logprob in drawn])
        if all(rollout.done for rollout in rollouts):
            break
        logits_B_1_V = model(input_ids=next_B[:, None], past_key_values=cache, use_cache=True).logits
        logprobs_B_V = logits_B_1_V[:, -1].log_softmax(-1)
    return rollouts


# Credit


def code_similarity(rollouts: list[Rollout]) -> Tensor:
    """similarity_G_G: cosine of the counts of the rollouts' calls, 0 where a rollout has none."""
    calls = sorted({call for rollout in rollouts for call in rollout.calls})
    counts = torch.tensor([[float(rollout.calls.count(call)) for call in calls] for rollout in rollouts])
    return torch.nn.functional.normalize(counts, dim=1) @ torch.nn.functional.normalize(counts, dim=1).T


def gtpo_advantages(rollouts: list[Rollout]) -> Tensor:
    """advantages_B_K, one per turn. The rollouts of a group are consecutive."""
    num_turns_B = torch.tensor([len(rollout.invalid) for rollout in rollouts])
    passed_B = torch.tensor([rollout.passed for rollout in rollouts])
    has_call_B = torch.tensor([rollout.has_call for rollout in rollouts])
    invalid_B_K = pad_sequence([torch.tensor(rollout.invalid) for rollout in rollouts], batch_first=True)
    group_ids_B = torch.arange(len(rollouts)) // GROUP_SIZE

    # A failed rollout gets up to ALPHA for calls that resemble those of its group's successful rollouts.
    has_code_B = torch.tensor([bool(rollout.calls) for rollout in rollouts])
    shaped = []
    for start in range(0, len(rollouts), GROUP_SIZE):
        group = slice(start, start + GROUP_SIZE)
        similarity_G_G = code_similarity(rollouts[group])
        shaped.append(F.shaped_accuracy(similarity_G_G, passed_B[group], has_code_B[group], alpha=ALPHA))
    # The accuracy reward is assigned to the last turn, a format penalty to each turn with an invalid call.
    rewards_B_K = F.turn_rewards(
        passed_B, num_turns_B, invalid_B_K, has_call_B, format_penalty=FORMAT_PENALTY, shaped_B=torch.cat(shaped)
    )
    # A turn's return is its reward and the discounted rewards of later turns; normalised, it is the advantage.
    returns_B_K = F.discounted_returns(rewards_B_K, num_turns_B, gamma=GAMMA)
    return F.group_advantages(returns_B_K, num_turns_B, group_ids_B, passed_B=passed_B)


# The update


def token_logprobs(model: PreTrainedModel, ids_B_T: Tensor) -> Tensor:
    """logprobs_B_T of each token given those before it; 0 for the first."""
    logits_B_T_V = model(input_ids=ids_B_T[:, :-1]).logits
    logprobs_B_T = logits_B_T_V.log_softmax(-1).gather(2, ids_B_T[:, 1:, None])[:, :, 0]
    return torch.nn.functional.pad(logprobs_B_T, (1, 0))


def clipped_update(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, rollouts: list[Rollout], advantages_B_K: Tensor
) -> None:
    """Take EPOCHS * MINIBATCHES optimizer steps on the clipped surrogate of the model's own tokens."""

    def batch(name: str, padding: float) -> Tensor:
        return pad_sequence([torch.tensor(getattr(r, name)) for r in rollouts], batch_first=True, padding_value=padding)

    ids_B_T, turn_ids_B_T, old_logprobs_B_T = batch("ids", PAD), batch("turn_ids", -1), batch("logprobs", 0.0)
    advantages_B_T = F.spread_to_tokens(advantages_B_K, turn_ids_B_T)  # exactly 0 on prompt, observations and padding
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(rollouts)).chunk(MINIBATCHES):
            ratio = (token_logprobs(model, ids_B_T[rows]) - old_logprobs_B_T[rows]).exp()
            clipped = ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH)
            surrogate = torch.minimum(ratio * advantages_B_T[rows], clipped * advantages_B_T[rows])
            loss = -surrogate[turn_ids_B_T[rows] >= 0].mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()


def train(seed: int = 0, updates: int = 30, cold_start_steps: int = 300) -> list[float]:
    """Cold start, then GTPO. Returns the pass rate of the rollouts of each update."""
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = make_model()
    cold_start(model, rng, cold_start_steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    pass_rates = []
    for update in range(updates):
        questions = [make_question(rng) for _ in range(PROMPTS)]
        rollouts = sample_rollouts(model, [question for question in questions for _ in range(GROUP_SIZE)])
        clipped_update(model, optimizer, rollouts, gtpo_advantages(rollouts))
        pass_rates.append(sum(rollout.passed for rollout in rollouts) / len(rollouts))
        if update % 5 == 0 or update == updates - 1:
            invalid = sum(sum(rollout.invalid) for rollout in rollouts) / len(rollouts)
            print(f"update {update + 1:3}: pass rate {pass_rates[-1]:.2f}, invalid calls per rollout {invalid:.2f}")
    print("\nA rollout of the last update:\n" + decode(rollouts[0].ids))
    return pass_rates


# The model and its cold start


def make_model() -> PreTrainedModel:
    """A GPT-2 of about 100,000 parameters, freshly initialised."""
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_positions=MAX_TOKENS, n_embd=64, n_layer=2, n_head=4, initializer_range=0.1,
        activation_function="gelu_pytorch_tanh", resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def demonstration(rng: random.Random) -> str:
    """A rollout of mixed quality: at each step a right call, a wrong one, an invalid one, or a guess."""
    question = make_question(rng)
    value, operations = question[:2], re.findall(r"[+*-]\d\d", question)
    lines = [f"Q{question}"]
    while operations and rng.random() > 0.1:
        call = value + operations[0]
        if rng.random() < 0.1:
            lines += ["C" + call.replace(operations[0][0], "?"), "O??"]
            continue
        if rng.random() < 0.25:
            call = value + rng.choice("+-*") + operations[0][1:]
        value = calculator(call) or ""
        operations.pop(0)
        lines += ["C" + call, "O" + value]
    answer = f"{rng.randint(0, 99):02d}" if operations else value
    return "\n".join([*lines, "A" + answer]) + "\n"


def cold_start(model: PreTrainedModel, rng: random.Random, steps: int) -> None:
    """Teach the format by maximum likelihood on every token of demonstrations."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    for _ in range(steps):
        texts = [demonstration(rng)[:MAX_TOKENS] for _ in range(64)]
        ids_B_T = pad_sequence([torch.tensor(encode(text)) for text in texts], batch_first=True, padding_value=PAD)
        loss = -token_logprobs(model, ids_B_T)[ids_B_T != PAD].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="GTPO in one file; see the top of the file.")
    parser.add_argument("--seed", type=int, default=0)
    torch.set_num_threads(1)
    train(seed=parser.parse_args().seed)
