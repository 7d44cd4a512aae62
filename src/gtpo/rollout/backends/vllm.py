"""In-process generation with vLLM: one request per turn, so that its continuous batching and prefix cache do the work.

The engine computes between two awaits of the event loop, as the `transformers` backend does. For vLLM on a server see
`gtpo.rollout.backends.openai`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from gtpo.errors import BadAnswerError
from gtpo.rollout.backends.answers import checked_generation
from gtpo.rollout.backends.base import Generation, GenerationSession, Request, turn_seed
from gtpo.rollout.settings import Sampling


class VLLMBackend:
    """Generates with a `vllm.LLM`.

    The engine's `logprobs_mode` decides what its log-probabilities are. TRL's correction for the difference between
    sampling and training needs "processed_logprobs", which include truncation (top-k and the like).

    Args:
        llm: the engine.
        before: called before each batch, to wake an engine that sleeps.
        after: called after each batch.
    """

    def __init__(
        self, llm: Any, *, before: Callable[[], None] | None = None, after: Callable[[], None] | None = None
    ) -> None:
        self.llm = llm
        self._before, self._after = before, after
        self.max_context = int(llm.llm_engine.model_config.max_model_len)

    @asynccontextmanager
    async def serve(
        self, rollouts: int, *, sampling: Sampling, end_ids: frozenset[int], seed: int
    ) -> AsyncIterator[GenerationSession]:
        """See `Backend.serve`."""
        if self._before:
            self._before()
        server = _EngineSession(self.llm.llm_engine, sampling, end_ids, seed if sampling.deterministic else None)
        try:
            yield server
        finally:
            server.abort()
            if self._after:
                self._after()


class _EngineSession:
    """The requests of one batch of rollouts."""

    def __init__(self, engine: Any, sampling: Sampling, end_ids: frozenset[int], seed: int | None) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self._engine, self._seed = engine, seed
        self._params = lambda **own: SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            min_p=sampling.min_p or 0.0,
            repetition_penalty=sampling.repetition_penalty,
            stop_token_ids=sorted(end_ids),
            logprobs=0,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            **own,
        )
        self._end_ids, self._vocabulary = end_ids, int(engine.model_config.get_vocab_size())
        self._waiting: dict[str, asyncio.Future[Generation]] = {}
        self._requests: dict[str, Request] = {}
        self._worker: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Generation:
        """See `GenerationSession.generate`."""
        loop = asyncio.get_running_loop()
        name = f"{id(self):x}-{request.rollout}-{request.turn}"
        seed = None if self._seed is None else turn_seed(self._seed, request)
        params = self._params(max_tokens=request.max_new_tokens, seed=seed)
        self._engine.add_request(name, {"prompt_token_ids": list(request.context)}, params)
        self._waiting[name], self._requests[name] = loop.create_future(), request
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        try:
            return await self._waiting[name]
        except asyncio.CancelledError:
            if self._waiting.pop(name, None) is not None:
                self._engine.abort_request([name])
            raise
        finally:
            del self._requests[name]

    def finish(self, rollout: int) -> None:
        """See `GenerationSession.finish`."""

    def abort(self) -> None:
        """Aborts the requests that are no longer waited for."""
        if self._waiting:
            self._engine.abort_request(list(self._waiting))
            self._waiting.clear()

    async def _work(self) -> None:
        """Computes while requests wait, and lets the event loop run between two steps."""
        try:
            while self._waiting:
                for output in self._engine.step():
                    if output.finished:
                        self._settle(output)
                await asyncio.sleep(0)
        except Exception as error:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(error)
            self.abort()

    def _settle(self, output: Any) -> None:
        future = self._waiting.pop(output.request_id, None)
        if future is None or future.done():
            return
        try:
            future.set_result(self._read(output))
        except BadAnswerError as error:
            future.set_exception(error)

    def _read(self, output: Any) -> Generation:
        if len(output.outputs) != 1:
            raise BadAnswerError(f"vLLM: {len(output.outputs)} completions, but one was requested")
        (completion,) = output.outputs
        ids = list(completion.token_ids)
        found = completion.logprobs or []
        try:
            logprobs = [step[token].logprob for token, step in zip(ids, found, strict=True)]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BadAnswerError(f"vLLM: {len(ids)} ids without one log-probability for each ({error!r})") from error
        return checked_generation(
            ids,
            logprobs,
            self._requests[output.request_id],
            vocabulary=self._vocabulary,
            end_ids=self._end_ids,
            source="vLLM",
        )
