"""Continuous batching in process: against the `generate` of transformers, and the same whatever happens when."""

from __future__ import annotations

import asyncio
import copy
import random
from itertools import islice

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    Qwen3_5TextConfig,
)

from gtpo.rollout import ChatEncoder, RolloutEngine, RolloutLimits, Sampling, get_format
from gtpo.rollout.backends import Generation, Request, TransformersBackend
from gtpo.rollout.backends.sampling import Sampler, uniform_numbers
from gtpo.rollout.repetition import degenerate_at
from gtpo.sandbox import ExecResult, Status

VOCABULARY = 50
END = frozenset({0})
GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def contexts(number, longest=60, seed=0):
    rng = random.Random(seed)
    return [[rng.randrange(1, VOCABULARY) for _ in range(rng.randint(1, longest))] for _ in range(number)]


async def turns(backend, prompts, scripts, *, sampling=GREEDY, seed=0, pauses=None, counts=None):
    """Generates a turn after each prompt and after each text appended to it; the ids of every turn."""
    pauses = pauses or (lambda i, j: 0)

    async def one(server, i):
        context, said = list(prompts[i]), []
        for j, observation in enumerate(scripts[i]):
            await asyncio.sleep(pauses(i, j))
            context += observation
            generation = await server.generate(Request(i, j, list(context), 12))
            said.append(generation)
            context += generation.token_ids
        server.finish(i)
        return said

    async with backend.serve(len(prompts), sampling=sampling, end_ids=END, seed=seed) as server:
        results = await asyncio.gather(*(one(server, i) for i in range(len(prompts))))
        if counts is not None:
            counts.append(server)
        return results


def conversations(number, seed=0):
    rng = random.Random(seed)
    prompts = contexts(number, seed=seed)
    return prompts, [[[], *contexts(rng.randrange(4), longest=20, seed=i)] for i in range(number)]


@pytest.fixture
def two_threads():
    """`make test` runs with one, where fewer things can differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("batch_size", [3, 64])
def test_greedy_turns_are_those_of_the_hosts_generate(model, batch_size):
    prompts, scripts = conversations(10)
    said = asyncio.run(turns(TransformersBackend(model, batch_size=batch_size), prompts, scripts))
    for prompt, observations, generations in zip(prompts, scripts, said, strict=True):
        context = list(prompt)
        for observation, generation in zip(observations, generations, strict=True):
            context += observation
            out = model.generate(
                torch.tensor([context]), do_sample=False, max_new_tokens=12, eos_token_id=0, pad_token_id=0
            )
            assert list(generation.token_ids) == out[0, len(context) :].tolist()
            context += generation.token_ids
    assert {len(g.token_ids) for turn in said for g in turn} > {12}, "some turns must end by themselves"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_logprobs_are_those_of_a_plain_forward_pass(model, attention):
    model.set_attn_implementation(attention)
    prompts, scripts = conversations(12, seed=1)
    sampling = Sampling(temperature=0.7, top_k=20)
    said = asyncio.run(turns(TransformersBackend(model), prompts, scripts, sampling=sampling))
    model.set_attn_implementation("sdpa")
    for prompt, observations, generations in zip(prompts, scripts, said, strict=True):
        context = list(prompt)
        for observation, generation in zip(observations, generations, strict=True):
            context += observation
            ids = torch.tensor([[*context, *generation.token_ids]])
            with torch.no_grad():
                logprobs_T_V = (model(ids).logits[0, len(context) - 1 : -1] / 0.7).log_softmax(-1)
            expected = logprobs_T_V[range(len(generation.token_ids)), list(generation.token_ids)]
            torch.testing.assert_close(torch.tensor(generation.logprobs), expected, atol=2e-5, rtol=1e-4)
            context += generation.token_ids


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rollout_does_not_depend_on_those_beside_it_or_on_when_they_came(model, dtype):
    cast = LlamaForCausalLM(model.config).to(dtype).eval()
    cast.load_state_dict(model.state_dict())
    prompts, scripts = conversations(40, seed=2)
    sampling = Sampling(temperature=1.3, top_p=0.95)
    runs = []
    for run in range(4):
        rng = random.Random(run)
        pauses = None if run == 0 else lambda i, j, rng=rng: rng.choice([0, 0.001, 0.02])
        backend = TransformersBackend(cast, batch_size=(64, 64, 16, 5)[run])
        runs.append(asyncio.run(turns(backend, prompts, scripts, sampling=sampling, seed=7, pauses=pauses)))
    assert runs[0] == runs[1] == runs[2] == runs[3]  # ids and log-probabilities, to the last bit
    other = asyncio.run(turns(TransformersBackend(cast), prompts, scripts, sampling=sampling, seed=8))
    assert other != runs[0]


def test_each_token_is_computed_once_and_a_groups_prompt_once_for_all(model, monkeypatch):
    passed = []
    forward = type(model).forward

    def counting(self, input_ids, **options):
        passed.append(tuple(input_ids.shape))
        return forward(self, input_ids=input_ids, **options)

    monkeypatch.setattr(type(model), "forward", counting)
    (prompt,) = contexts(1, longest=1)
    prompt = prompt * 50
    observation = [3] * 21
    said = asyncio.run(turns(TransformersBackend(model), [prompt] * 8, [[[], observation, observation]] * 8))
    prefills = [shape for shape in passed if shape != (8, 1)]
    # the prompt but its last token, once; then for each observation what is new, of as many rollouts as ask for it at
    # the same time; all filled up to multiples of 32
    assert prefills[0] == (1, 64)
    assert {width for _, width in prefills[1:]} == {32}
    assert sum(rows for rows, _ in prefills[1:]) == 16
    steps = sum(shape == (8, 1) for shape in passed)
    assert steps == sum(max(len(s[j].token_ids) for s in said) for j in range(3))


def test_an_adapter_is_sampled_from(model):
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(model), lora).eval()
    prompts, scripts = conversations(6, seed=4)
    said = asyncio.run(turns(TransformersBackend(tuned), prompts, scripts))
    for prompt, generations in zip(prompts, said, strict=True):
        out = tuned.generate(
            input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=12, eos_token_id=0, pad_token_id=0
        )
        assert list(generations[0].token_ids) == out[0, len(prompt) :].tolist()
    assert said != asyncio.run(turns(TransformersBackend(model), prompts, scripts))


def test_weights_of_float32_under_autocast_are_those_of_the_trainers_arithmetic(model):
    prompts, scripts = conversations(6, seed=5)
    with torch.autocast("cpu", torch.bfloat16):
        said = asyncio.run(turns(TransformersBackend(model), prompts, scripts))
    for prompt, generations in zip(prompts, said, strict=True):
        ids = torch.tensor([[*prompt, *generations[0].token_ids]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logprobs_T_V = model(ids).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        expected = logprobs_T_V[range(len(generations[0].token_ids)), list(generations[0].token_ids)]
        torch.testing.assert_close(torch.tensor(generations[0].logprobs), expected, atol=0.15, rtol=0.05)
    assert said != asyncio.run(turns(TransformersBackend(model), prompts, scripts))


def test_a_finished_rollout_leaves_its_place_to_the_next(model):
    servers = []
    prompts, scripts = conversations(30, seed=3)
    asyncio.run(turns(TransformersBackend(model, batch_size=4), prompts, scripts, counts=servers))
    (server,) = servers
    assert len(server._cache.lengths) == 8  # four rows, and four that fill up what is computed at once
    assert sorted(server._free) == [0, 1, 2, 3]
    assert not server._row_of


def test_the_next_place_is_given_even_if_it_gets_free_while_nothing_is_computed(model):
    async def main():
        async with TransformersBackend(model, batch_size=1).serve(2, sampling=GREEDY, end_ids=END, seed=0) as server:
            await server.generate(Request(0, 0, [1, 2], 2))
            second = asyncio.ensure_future(server.generate(Request(1, 0, [3, 4], 2)))
            await asyncio.sleep(0.01)
            assert not second.done()
            server.finish(0)
            return await asyncio.wait_for(second, 5)

    assert len(asyncio.run(main()).token_ids) >= 1


def test_a_failing_model_fails_every_rollout_that_waits(model, monkeypatch):
    monkeypatch.setattr(type(model), "forward", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        asyncio.run(turns(TransformersBackend(model), *conversations(5)))
    assert not model.training


def test_a_cancelled_turn_is_not_computed_any_further(model):
    async def main():
        async with TransformersBackend(model).serve(1, sampling=GREEDY, end_ids=frozenset(), seed=0) as server:
            task = asyncio.ensure_future(server.generate(Request(0, 0, [1, 2], 10**6)))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            held = server._cache.lengths[0]
            await asyncio.sleep(0.02)
            assert 1 < held == server._cache.lengths[0]

    asyncio.run(main())


@pytest.mark.parametrize(("limit", "tokens"), [(0, 80), (5, 6), (40, 41), (79, 80), (90, 80)])
def test_a_turn_is_not_computed_further_once_it_is_degenerate(model, limit, tokens):
    same = copy.deepcopy(model)
    same.lm_head.weight.data.zero_()  # the first token is always the likeliest

    async def main():
        async with TransformersBackend(same).serve(1, sampling=GREEDY, end_ids=frozenset(), seed=0) as server:
            return await server.generate(Request(0, 0, [1, 2], 80, max_repeated_tokens=limit))

    sampled = asyncio.run(main()).token_ids
    assert len(sampled) == (degenerate_at([0] * 80, limit) or 80) == tokens


def test_training_mode_and_attention_come_back(model):
    model.train()
    asyncio.run(turns(TransformersBackend(model), *conversations(3)))
    assert model.training
    model.eval()


SIZE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 2048,
}
OTHERS = {
    "Mistral": MistralConfig(**SIZE, sliding_window=8),
    "Gemma 3": Gemma3TextConfig(**SIZE, sliding_window=8),
    "gpt-oss": GptOssConfig(**SIZE, sliding_window=8, num_local_experts=4, num_experts_per_tok=2),
    "LFM2": Lfm2Config(**SIZE, layer_types=["conv", "full_attention"] * 2),
    "Qwen3.5": Qwen3_5TextConfig(**SIZE),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_model_whose_state_the_rows_can_not_hold_is_sampled_from_all_the_same(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OTHERS[name]).eval()
    with pytest.warns(UserWarning, match=r"one at a time.*use vLLM"):
        backend = TransformersBackend(model)
    prompts, scripts = conversations(2)
    sampling = Sampling(temperature=0.7)
    said = asyncio.run(turns(backend, prompts, scripts, sampling=sampling))
    assert said == asyncio.run(turns(backend, prompts, scripts, sampling=sampling, pauses=lambda i, j: 0.01 * (3 - i)))
    for prompt, observations, generations in zip(prompts, scripts, said, strict=True):
        context = list(prompt)
        for observation, generation in zip(observations, generations, strict=True):
            context += observation
            ids = torch.tensor([[*context, *generation.token_ids]])
            with torch.no_grad():
                logits = model(ids, use_cache=False).logits[0, len(context) - 1 : -1].float() / 0.7
            chosen = logits.log_softmax(-1)[range(len(generation.token_ids)), generation.token_ids]
            assert chosen.tolist() == pytest.approx(generation.logprobs, abs=2e-4)
            context += generation.token_ids


def test_the_slow_way_is_the_rows_way_where_both_can_be_gone(model):
    """The same tokens from the same streams of random numbers, and the same ends."""
    prompts, scripts = conversations(6)
    rows, slow = TransformersBackend(model), TransformersBackend(model)
    slow.by_rows = False
    for sampling in (GREEDY, Sampling(temperature=1.3, top_k=7)):
        ours, other = (asyncio.run(turns(each, prompts, scripts, sampling=sampling)) for each in (rows, slow))
        assert [[g.token_ids for g in said] for said in ours] == [[g.token_ids for g in said] for said in other]


@pytest.mark.parametrize(
    "sampling",
    [Sampling(), Sampling(temperature=0.5), Sampling(top_k=3), Sampling(top_p=0.6), Sampling(min_p=0.2)],
)
def test_tokens_come_as_often_as_the_distribution_says(sampling):
    logits_V = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    expected_V = (logits_V / sampling.temperature).softmax(-1)
    order = expected_V.argsort(descending=True).tolist()
    if sampling.top_k:
        kept = order[:3]
    elif sampling.top_p < 1:
        kept = [t for i, t in enumerate(order) if sum(expected_V[order[:i]].tolist()) < 0.6]
    elif sampling.min_p:
        kept = [t for t in order if expected_V[t] >= 0.2 * expected_V.max()]
    else:
        kept = order
    expected_V = torch.tensor([float(expected_V[t]) if t in kept else 0.0 for t in range(5)])
    numbers = uniform_numbers(seed=1, rollout=0)
    draws = 20_000
    chosen, _ = Sampler(sampling).sample(logits_V.expand(draws, 5), [next(numbers) for _ in range(draws)])
    seen_V = torch.bincount(torch.tensor(chosen), minlength=5) / draws
    torch.testing.assert_close(seen_V, expected_V / expected_V.sum(), atol=0.015, rtol=0)
    assert all(seen_V[t] == 0 for t in range(5) if t not in kept)


def test_the_ends_of_the_range_never_choose_a_token_of_no_probability():
    logits_V = torch.tensor([[-float("inf"), 0.0, -float("inf"), 0.0, -float("inf")]]).expand(3, 5)
    chosen, _ = Sampler(Sampling()).sample(logits_V, [0.0, 0.5, 1 - 2**-53])
    assert chosen == [1, 3, 3]


def test_a_repetition_penalty_lowers_held_tokens_only():
    sampler = Sampler(Sampling(temperature=0, repetition_penalty=1.5))
    logits_R_V = torch.tensor([[1.0, 1.2, 0.9], [1.0, 1.2, 0.9]])
    assert sampler.sample(logits_R_V, [], [[1, 1, 1], [2]])[0] == [0, 1]


def test_streams_of_numbers_differ_and_come_again():
    streams = {(seed, i): tuple(islice(uniform_numbers(seed, i), 5)) for seed in (0, 1) for i in range(50)}
    assert len(set(streams.values())) == 100
    assert streams == {key: tuple(islice(uniform_numbers(*key), 5)) for key in streams}
    assert all(0 <= number < 1 for stream in streams.values() for number in stream)


class SlowSandbox:
    """Answers late, each call after a time of its own."""

    def __init__(self, seed):
        self.rng = random.Random(seed)

    async def run(self, code, *, limits=None, seed=None, key=None):
        await asyncio.sleep(self.rng.choice([0, 0.002, 0.03]))
        return ExecResult(Status.OK, stdout=code.upper())


def test_whole_rollouts_do_not_depend_on_the_order_in_which_tools_finish(tiny_tokenizer):
    from gtpo.lab.tiny.model import make_model

    model = make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=2)
    encoder = ChatEncoder(tiny_tokenizer, get_format("fenced"))
    prompts = [[{"role": "user", "content": f"{i % 4}+1"}] for i in range(24)]
    engine = RolloutEngine(encoder, SlowSandbox(0), RolloutLimits(max_turns=4, max_turn_tokens=20))
    runs = []
    for run in range(3):
        engine.tools["python"].sandbox = SlowSandbox(run)
        backend = TransformersBackend(model, batch_size=(24, 24, 7)[run])
        runs.append(engine.run(prompts, _CallsOften(backend, tiny_tokenizer), seed=3).trajectories)
    for trajectories in runs[1:]:
        assert [(t.completion_ids, t.logprobs) for t in trajectories] == [
            (t.completion_ids, t.logprobs) for t in runs[0]
        ]
    assert sum(len(t.turns) > 1 for t in runs[0]) > 10


class _CallsOften:
    """Puts a call after half of what an untrained model says, so that there are turns to tell apart."""

    def __init__(self, backend, tokenizer):
        self.backend, self.max_context, self.tokenizer = backend, backend.max_context, tokenizer

    def serve(self, rollouts, **options):
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def serving():
            async with self.backend.serve(rollouts, **options) as server:
                yield _Calling(server, self.tokenizer)

        return serving()


class _Calling:
    def __init__(self, server, tokenizer):
        self.server, self.finish, self.tokenizer = server, server.finish, tokenizer

    async def generate(self, request):
        generation = await self.server.generate(request)
        if generation.token_ids[0] % 2:
            return generation
        call = self.tokenizer.encode("\n```python\n1\n```\n")
        ids = (*generation.token_ids[:-1], *call, self.tokenizer.eos_token_id)
        return Generation(ids, (*generation.logprobs[:-1], *[0.0] * (len(call) + 1)))
