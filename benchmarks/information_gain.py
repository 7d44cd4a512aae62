"""What the scores for `information_gain` cost: one more forward pass per rollout, against the update and one per turn.

    python benchmarks/information_gain.py [--rollouts 8] [--turns 2 4 8] [--turn_tokens 60] [--shape smollm2|tiny]

Rollouts of random ids on a model of SmolLM2-135M's shape (or the demo's) with random weights in float32. It reports CPU
seconds, so other work on the machine has little effect: for the scores as the trainer computes them, for the same
scores with one pass per turn, and for a forward and a backward pass over the same rollouts, which is what an update
computes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from gtpo.lab.tiny.model import make_model, make_tokenizer
from gtpo.rollout import FORMATS, ChatEncoder, Prompts
from gtpo.tasks.problems import Problem
from gtpo.training import answer_scoring
from gtpo.types import Observation, StopReason, Trajectory, Turn

PROMPT, OBSERVATION = 120, 20
"""Tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rollouts", type=int, default=8)
    parser.add_argument("--turns", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--turn_tokens", type=int, default=60)
    parser.add_argument("--shape", choices=("smollm2", "tiny"), default="smollm2")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = make_tokenizer()
    model: Any = make_model(tokenizer, seed=0) if args.shape == "tiny" else smollm2()
    tool_format = FORMATS["fenced"]()
    scorer = answer_scoring.AnswerScorer(ChatEncoder(tokenizer, tool_format), Prompts(tool_format, ""))
    print("| turns | tokens per rollout | scores, s | one pass per turn, s | update, s | scores / update |")
    print("|---|---|---|---|---|---|")
    for turns in args.turns:
        rollouts = [rollout(turns, args.turn_tokens, len(tokenizer)) for _ in range(args.rollouts)]
        problems = [Problem("p", "6*7", "42")] * args.rollouts
        scores = seconds(lambda: scorer.logprobs(model, rollouts, problems))  # noqa: B023
        with patch.object(answer_scoring, "attends_to_all", lambda model: False):
            each = seconds(lambda: scorer.logprobs(model, rollouts, problems))  # noqa: B023
        whole = torch.tensor([[*t.prompt_ids, *t.completion_ids] for t in rollouts])
        update = seconds(lambda: model(input_ids=whole, labels=whole).loss.backward())  # noqa: B023
        print(f"| {turns} | {whole.shape[1]} | {scores:.2f} | {each:.2f} | {update:.2f} | {scores / update:.2f} |")


def smollm2() -> LlamaForCausalLM:
    """SmolLM2-135M's shape, random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152,
        hidden_size=576,
        intermediate_size=1_536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        max_position_embeddings=8_192,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def rollout(turns: int, turn_tokens: int, ids: int) -> Trajectory:
    """Random ids."""

    def some(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, ids, (count,)).tolist())

    observed = Observation("", ("ok",), some(OBSERVATION))
    made = [Turn("", some(turn_tokens), (), observed if turn < turns - 1 else None) for turn in range(turns)]
    return Trajectory(some(PROMPT), tuple(made), StopReason.ANSWER)


def seconds(compute: Callable[[], object]) -> float:
    """Processor seconds, the smaller of two."""
    spent = []
    for _ in range(2):
        start = time.process_time()
        compute()
        spent.append(time.process_time() - start)
    return min(spent)


if __name__ == "__main__":
    main()
