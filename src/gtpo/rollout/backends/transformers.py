"""In-process generation with a `transformers` model: continuous batching with a row of a key-value cache per rollout.

Each rollout has a row of the cache (`kv_rows.KVRowCache`) from its first turn to its last. A turn computes only what is
new since the turn before: the end of that turn and the observation. Rollouts of the same prompt share its computation.
The row of a finished rollout goes to the next one. The model computes between two awaits of the event loop, so tool
calls, which run elsewhere, continue meanwhile and their rollouts join at the next token.

Which token a rollout samples depends on its own ids, its own stream of random numbers, and the model; not on the other
rollouts or on when they arrived. To this end, shapes are chosen so that a row's result does not depend on the number of
other rows: on a CPU at least eight rows, new tokens in multiples of 32 and attention in multiples of 128 (with MKL's
float32 also `MKL_CBWR=AUTO,STRICT`, which the command line sets); elsewhere always all rows. The tests check this on a
CPU.

Attention masks are explicit, so the model must use eager or scaled-dot-product attention; others are switched to the
latter during generation. Models that keep anything but keys and values of all tokens (sliding windows, convolutions,
linear attention) use `generate` of transformers, one turn at a time, with a warning about the speed.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from gtpo.rollout.backends.base import Generation, GenerationSession, Request
from gtpo.rollout.backends.generate import GenerateSession
from gtpo.rollout.backends.kv_rows import KVRowCache
from gtpo.rollout.backends.sampling import Sampler, uniform_numbers
from gtpo.rollout.repetition import LONGEST_PERIOD, degenerate_at
from gtpo.rollout.settings import Sampling

_LEAST_ROWS = 8
_PREFILL, _PREFILL_ALIGN, _PREFILL_TOKENS = 512, 32, 4096
"""Prefill: tokens of one row computed at once, the multiple to which a row is padded, and tokens of a batch of rows."""
_SMALL = 5_000_000
_LOOK_EVERY = 16
"""Number of tokens after which a turn is checked for repetition."""
_KEPT_SHARE = 0.75
"""Rows are moved together when fewer than this share of those computed are wanted."""


class TransformersBackend:
    """Generates with an in-process model.

    Args:
        model: a causal language model, with or without PEFT. Under FSDP or ZeRO-3 its weights must have been gathered.
        batch_size: maximum number of concurrent rollouts; each has a row of the key-value cache.
    """

    def __init__(self, model: Any, *, batch_size: int = 64):
        self.model = model
        self.batch_size = batch_size
        config = model.config.get_text_config()
        self.max_context = int(getattr(config, "max_position_embeddings", None) or 2**31)
        self.by_rows = attends_to_all(model)
        """Whether the rows of the key-value cache hold all that the model keeps of its tokens."""
        if not self.by_rows:
            more = ", ".join(sorted(_layer_kinds(config) - {"full_attention"})) or "a sliding window"
            warnings.warn(
                f"{type(model).__name__} keeps more than keys and values of its tokens ({more}), so turns are "
                "generated one at a time, each from its whole context, which is much slower than with other models. If "
                "it is too slow, use vLLM (--use_vllm true, or --backend vllm)",
                stacklevel=2,
            )

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[GenerationSession]:
        """See `Backend.serve`."""
        with generating(self.model):
            if not self.by_rows:
                yield GenerateSession(self.model, sampling, end_ids, seed)
                return
            yield _KVRowSession(self.model, min(rollouts, self.batch_size), sampling, end_ids, seed)


@dataclass(eq=False)
class _Turn:
    """A turn that is being generated."""

    request: Request
    future: asyncio.Future[Generation]
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def cut_repetition(self) -> bool:
        """Cut the turn where it became degenerate, if it did; checked every few tokens."""
        limit = self.request.max_repeated_tokens
        if not limit or len(self.sampled) % _LOOK_EVERY:
            return False
        start = max(0, len(self.sampled) - (limit + LONGEST_PERIOD + _LOOK_EVERY))
        end = degenerate_at(self.sampled[start:], limit)
        if end is not None:
            del self.sampled[start + end :], self.logprobs[start + end :]
        return end is not None


class _KVRowSession:
    """The rows of one batch of rollouts, and which rollout uses each."""

    def __init__(self, model: Any, rows: int, sampling: Sampling, end_ids: frozenset[int], seed: int) -> None:
        self._model, self._end_ids, self._seed = model, end_ids, seed
        self._device = model.device
        self._fixed = self._device.type != "cpu"
        layers = model.config.get_text_config().num_hidden_layers
        self._cache = KVRowCache(max(rows, _LEAST_ROWS), layers, self._device)
        self._sampler = Sampler(sampling)
        self._free = list(reversed(range(rows)))
        self._row_of: dict[int, int] = {}
        self._prompts: dict[tuple[int, ...], int] = {}  # first contexts, and a rollout that holds each
        self._uniforms: dict[int, Iterator[float]] = {}
        self._waiting: deque[_Turn] = deque()
        self._active: dict[int, _Turn] = {}  # by rollout
        self._worker: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Generation:
        """See `GenerationSession.generate`."""
        turn = _Turn(request, asyncio.get_running_loop().create_future())
        self._waiting.append(turn)
        self._wake()
        try:
            return await turn.future
        except asyncio.CancelledError:
            self._drop(turn)
            raise

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""
        if rollout in self._row_of:
            row = self._row_of.pop(rollout)
            self._prompts = {prompt: holder for prompt, holder in self._prompts.items() if holder != rollout}
            self._cache.lengths[row] = 0
            self._free.append(row)
            if self._waiting:
                self._wake()
        self._uniforms.pop(rollout, None)

    def _wake(self) -> None:
        if self._worker is None or self._worker.done():
            self._worker = asyncio.get_running_loop().create_task(self._work())

    def _drop(self, turn: _Turn) -> None:
        if self._active.get(turn.request.rollout) is turn:
            del self._active[turn.request.rollout]
        elif turn in self._waiting:
            self._waiting.remove(turn)

    async def _work(self) -> None:
        """Computes while there is something to do, and lets the event loop run between two tokens."""
        try:
            while self._waiting or self._active:
                self._admit()
                if self._active:
                    self._compute_tokens()
                elif self._waiting:
                    return  # all rows belong to rollouts that wait for a tool; the next change wakes this again
                await asyncio.sleep(0)
        except BaseException as error:
            for turn in (*self._waiting, *self._active.values()):
                if not turn.future.done():
                    turn.future.set_exception(error)
            self._waiting.clear()
            self._active.clear()
            if not isinstance(error, Exception):
                raise

    def _admit(self) -> None:
        """Computes what is new in each waiting context except its last token, if its rollout has or gets a row."""
        kept: deque[_Turn] = deque()
        admitted: list[Request] = []
        copies: list[tuple[int, Request]] = []
        while self._waiting:
            turn = self._waiting.popleft()
            request = turn.request
            if request.rollout not in self._row_of:
                if not self._free:
                    kept.append(turn)
                    continue
                self._row_of[request.rollout] = self._free.pop()
                self._uniforms[request.rollout] = uniform_numbers(self._seed, request.rollout)
                prompt = tuple(request.context)
                if prompt in self._prompts:
                    copies.append((self._prompts[prompt], request))
                    self._active[request.rollout] = turn
                    continue
                self._prompts[prompt] = request.rollout
            admitted.append(request)
            self._active[request.rollout] = turn
        self._waiting = kept
        while admitted := [request for request in admitted if self._missing(request)]:
            for padded, requests in self._batches(admitted).items():
                self._prefill(requests, padded)
        for holder, request in copies:
            self._cache.copy(self._row_of[holder], self._row_of[request.rollout], len(request.context) - 1)

    def _missing(self, request: Request) -> int:
        return len(request.context) - 1 - self._cache.lengths[self._row_of[request.rollout]]

    def _batches(self, requests: Sequence[Request]) -> dict[int, list[Request]]:
        """Requests by the padded length of what is missing, so that a row's shape does not depend on the others."""
        batches: dict[int, list[Request]] = {}
        for request in requests:
            padded = -(-min(self._missing(request), _PREFILL) // _PREFILL_ALIGN) * _PREFILL_ALIGN
            batches.setdefault(padded, []).append(request)
        return batches

    def _prefill(self, requests: Sequence[Request], padded: int) -> None:
        for first in range(0, len(requests), most := max(1, _PREFILL_TOKENS // padded)):
            chosen = requests[first : first + most]
            rows = [self._row_of[request.rollout] for request in chosen]
            starts = [self._cache.lengths[row] for row in rows]
            new = [
                list(request.context[start : min(len(request.context) - 1, start + padded)])
                for request, start in zip(chosen, starts, strict=True)
            ]
            ids_R_T = torch.tensor([ids + [0] * (padded - len(ids)) for ids in new])
            self._forward(ids_R_T, self._cache.append(rows, [len(ids) for ids in new], padded))

    def _compute_tokens(self) -> None:
        """One more token for each active rollout."""
        rows = self._arrange()
        turns = sorted(self._active.values(), key=lambda turn: self._row_of[turn.request.rollout])
        places = [self._row_of[turn.request.rollout] for turn in turns]
        ids_R_1 = torch.zeros((rows, 1), dtype=torch.long)
        for row, turn in zip(places, turns, strict=True):
            ids_R_1[row, 0] = turn.sampled[-1] if turn.sampled else turn.request.context[-1]
        logits_R_V = self._forward(ids_R_1, self._cache.step(rows, places))
        if len(places) < rows:
            logits_R_V = logits_R_V[places]
        greedy, penalty = self._sampler.sampling.greedy, self._sampler.needs_contexts
        numbers = [0.0 if greedy else next(self._uniforms[turn.request.rollout]) for turn in turns]
        contexts = [[*turn.request.context, *turn.sampled] for turn in turns] if penalty else ()
        for turn, token, logprob in zip(turns, *self._sampler.sample(logits_R_V, numbers, contexts), strict=True):
            turn.sampled.append(token)
            turn.logprobs.append(logprob)
            full = len(turn.sampled) == turn.request.max_new_tokens
            if token in self._end_ids or full or turn.cut_repetition():
                del self._active[turn.request.rollout]
                if not turn.future.done():
                    turn.future.set_result(Generation(tuple(turn.sampled), tuple(turn.logprobs)))

    def _arrange(self) -> int:
        """How many rows to compute; moves the wanted ones together if many others lie between them."""
        if self._fixed:
            return len(self._cache.lengths)
        wanted = sorted(self._row_of[rollout] for rollout in self._active)
        if len(wanted) < _KEPT_SHARE * (wanted[-1] + 1) and wanted[-1] >= _LEAST_ROWS:
            holder_of = {row: rollout for rollout, row in self._row_of.items()}
            holes = [row for row in range(len(wanted)) if row not in wanted]
            for hole, row in zip(holes, reversed(wanted), strict=False):
                self._cache.swap(hole, row)
                self._row_of[holder_of[row]] = hole
                if hole in holder_of:
                    self._row_of[holder_of[hole]] = row
                else:
                    self._free[self._free.index(hole)] = row
            wanted = list(range(len(wanted)))
        return max(wanted[-1] + 1, _LEAST_ROWS)

    @torch.no_grad()
    def _forward(self, ids_R_T: torch.Tensor, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits of shape (R, V) after the last id of each row."""
        inputs["attention_mask"] = mask_for(self._model, inputs["attention_mask"])
        output = self._model(
            input_ids=ids_R_T.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **inputs,
        )
        return output.logits[:, -1]


def mask_for(model: Any, seen: torch.Tensor) -> torch.Tensor:
    """A boolean attention mask as the model's attention takes it: eager attention adds it to the scores."""
    if model.config.get_text_config()._attn_implementation != "eager":
        return seen
    return torch.where(seen, 0.0, torch.finfo(model.dtype).min).to(model.dtype)


def attends_to_all(model: Any) -> bool:
    """Whether every layer of a model attends to all earlier tokens, and keeps nothing else of them."""
    config = model.config.get_text_config()
    windows = bool(getattr(config, "sliding_window", None)) and "layer_types" not in config.to_dict()
    return _layer_kinds(config) == {"full_attention"} and not windows


def _layer_kinds(config: Any) -> set[str]:
    return set(getattr(config, "layer_types", None) or ["full_attention"])


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Inside: evaluation mode (no dropout) and an attention that takes explicit masks. Both are restored afterwards.

    A very small model computes on one thread of a CPU: more threads make it no faster and compete with the tools.
    """
    training, config = model.training, model.config.get_text_config()
    attention, threads = config._attn_implementation, torch.get_num_threads()
    model.eval()
    if model.device.type == "cpu" and sum(p.numel() for p in model.parameters()) < _SMALL:
        torch.set_num_threads(1)
    if attention not in ("eager", "sdpa"):
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.train(training)
        torch.set_num_threads(threads)
        if attention not in ("eager", "sdpa"):
            model.set_attn_implementation(attention)
