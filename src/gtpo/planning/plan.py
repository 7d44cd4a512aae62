"""The plan of a run: what each device holds, how long a step takes, and what would not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from gtpo.planning.hardware import GIB, Hardware
from gtpo.planning.memory import Sharding, activation_bytes, kv_bytes_per_token, static_bytes
from gtpo.planning.shape import ModelShape

OVERHEAD_GIB = 1.5
"""GiB per device for the CUDA context, NCCL buffers and fragmentation."""
USABLE = 0.92
"""Share of a device's memory that a plan may use."""
RECORDED_BYTES_PER_TOKEN = 3.5
"""Bytes per token of a compressed rollout; 3.3 were measured for English and Python with random log-probabilities."""


@dataclass(frozen=True)
class Workload:
    """The work of a step, and the devices for it.

    Attributes:
        rollouts: number of rollouts per step, over all devices.
        micro_batch: sequences per forward and backward pass on each device.
        prompt_tokens, completion_tokens: lengths for the longest rollout, which must fit into memory.
        mean_completion_tokens: length of an average rollout (sampled tokens and observations), which determines the
            time.
        turns: number of turns of an average rollout.
        tool_s: seconds of the call in a turn.
        sharding: none (DDP), zero2, zero3 or fsdp2.
        devices: number of training devices.
        generation: transformers (in the trainer), colocate (vLLM on the same devices) or server (vLLM on its own
            devices).
        generation_devices: number of devices of a server.
        tensor_parallel: number of devices that share one copy of the model in generation.
        gpu_memory_utilization: vLLM's share of a device's memory.
        rollout_batch: rollouts that transformers generates at a time on each device.
        weight_bytes: bytes per weight in training, as loaded.
        bits16: whether matrices are multiplied in 16 bit.
        trainable: number of trained weights; None: all.
        state_bytes: bytes of the optimizer per trained weight.
        trainable_bytes: bytes per trained weight.
        checkpointing: whether gradient checkpointing is used.
        reference: whether a second model gives reference log-probabilities (beta above 0, without an adapter).
        passes: number of passes without gradient before the update, for old and reference log-probabilities.
        iterations: number of times each rollout is trained on.
        sleep: whether a colocated vLLM frees its memory for the update.
        mfu: share of a device's peak arithmetic that training reaches.
        bandwidth_share: share of the bandwidth that decoding reaches.
        record_every, record_tokens: how often rollouts are recorded, and how many tokens of them; 0 tokens: all.
    """

    rollouts: int
    micro_batch: int
    prompt_tokens: int
    completion_tokens: int
    mean_completion_tokens: int
    turns: float = 4.0
    tool_s: float = 0.2
    sharding: Literal["none", "zero2", "zero3", "fsdp2"] = "none"
    devices: int = 1
    generation: Literal["transformers", "colocate", "server"] = "transformers"
    generation_devices: int = 0
    tensor_parallel: int = 1
    gpu_memory_utilization: float = 0.3
    rollout_batch: int = 64
    weight_bytes: int = 4
    bits16: bool = True
    trainable: int | None = None
    state_bytes: int = 8
    trainable_bytes: int = 4
    checkpointing: bool = True
    reference: bool = False
    passes: int = 0
    iterations: int = 1
    sleep: bool = False
    mfu: float = 0.35
    bandwidth_share: float = 0.5
    record_every: int = 1
    record_tokens: int = 1_000_000


@dataclass(frozen=True)
class Plan:
    """The outcome.

    Attributes:
        training_gib: memory of a training device by part, during the update.
        rollout_gib: memory of a training device by part, during generation; empty with a server.
        server_gib: memory of a device of the server by part; empty without a server.
        step_s: seconds by phase; rollouts wait for their tools once per turn.
        rollouts_at_once: number of full-length rollouts that one copy of the model generates at a time.
        tokens: tokens per step, sampled and observed.
        recorded_gb: disk space for the rollouts of 1,000 steps, in GB.
        problems: what does not fit, and what would help; empty if everything fits.
        assumptions: the assumptions behind the times.
    """

    training_gib: dict[str, float]
    rollout_gib: dict[str, float]
    server_gib: dict[str, float]
    step_s: dict[str, float]
    rollouts_at_once: int
    tokens: int
    recorded_gb: float
    problems: list[str] = field(default_factory=list)
    assumptions: list[str] = field(default_factory=list)

    @property
    def fits(self) -> bool:
        """Whether everything fits."""
        return not self.problems


def make_plan(shape: ModelShape, work: Workload, device: Hardware) -> Plan:
    """The plan of a run of this model on devices of one kind."""
    trainable = shape.parameters if work.trainable is None else work.trainable
    spread = Sharding.of(work.sharding, work.devices)
    static = static_bytes(shape, trainable, work.weight_bytes, work.trainable_bytes, work.state_bytes, spread)
    if work.reference:
        static["reference model"] = shape.parameters * work.weight_bytes / spread.weights
    used_bytes = 2 if work.bits16 else work.weight_bytes  # of a number that is calculated with
    longest = work.prompt_tokens + work.completion_tokens
    whole = trainable == shape.parameters
    update = {
        **static,
        "activations": activation_bytes(shape, work.micro_batch * longest, work.bits16, work.checkpointing, whole),
    }
    if spread.weights > 1:  # one layer at a time is put together, and the next one fetched
        update["gathered layers"] = 2 * shape.parameters / shape.layers * used_bytes
    kv = kv_bytes_per_token(shape, used_bytes)
    idle = {name: static[name] for name in static if name != "gradients"}
    budget = device.memory_gib * GIB * USABLE - OVERHEAD_GIB * GIB
    rollout: dict[str, float] = {}
    server: dict[str, float] = {}
    problems: list[str] = []
    per_device = -(-work.rollouts // work.devices)
    if work.generation == "transformers":
        at_once = min(work.rollout_batch, per_device)
        rollout = {**idle, "key-value cache": at_once * longest * kv}
        if spread.weights > 1:
            rollout["weights put together"] = shape.parameters * work.weight_bytes
        if work.bits16 and work.weight_bytes > 2:
            rollout["weights in 16 bit"] = shape.parameters * 2
        engines = work.devices
    else:
        weights = shape.parameters * used_bytes / work.tensor_parallel
        share = device.memory_gib * GIB * work.gpu_memory_utilization
        cache = share - weights - 1.0 * GIB  # its activations and graphs
        where = {"weights": weights, "key-value cache": max(cache, 0.0)}
        at_once = max(int(cache * work.tensor_parallel // (longest * kv)), 0)
        if work.generation == "server":
            server, engines = where, max(work.generation_devices // work.tensor_parallel, 1)
        else:
            rollout = {**idle, **{f"vLLM's {name}": size for name, size in where.items()}}
            engines = max(work.devices // work.tensor_parallel, 1)
            if cache > 0 and not work.sleep:
                update = {**update, "vLLM's share": share}
        if at_once < 1:
            problems.append(
                f"vLLM has no room for one rollout of {longest:,} tokens in {work.gpu_memory_utilization:.0%} of a "
                "device: raise vllm_gpu_memory_utilization, use more tensor parallelism, or shorten rollouts"
            )
    for what, parts in (("the update", update), ("rollouts", rollout)):
        if (need := sum(parts.values())) > budget:
            problems.append(f"{what} needs {need / GIB:.1f} GiB of {budget / GIB:.1f}: {_help(parts, work)}")
    mean = work.prompt_tokens + work.mean_completion_tokens
    paged = at_once if work.generation == "transformers" else at_once * longest // mean  # vLLM's cache has no padding
    step, notes = _seconds(shape, work, device, engines, paged, whole)
    return Plan(
        training_gib={name: size / GIB for name, size in update.items()},
        rollout_gib={name: size / GIB for name, size in rollout.items()},
        server_gib={name: size / GIB for name, size in server.items()},
        step_s=step,
        rollouts_at_once=at_once,
        tokens=work.rollouts * work.mean_completion_tokens,
        recorded_gb=_recorded_gb(work),
        problems=problems,
        assumptions=notes,
    )


def _recorded_gb(work: Workload) -> float:
    """GB for rollouts of 1,000 steps, compressed: about `record_tokens` completion tokens per recorded step."""
    tokens = work.rollouts * work.mean_completion_tokens
    per_step = min(tokens, work.record_tokens) if work.record_tokens else tokens
    return 1000 * per_step * RECORDED_BYTES_PER_TOKEN / work.record_every / 1e9 if work.record_every else 0.0


def _help(parts: dict[str, float], work: Workload) -> str:
    """The largest part, and how to make it smaller."""
    largest = max(parts, key=lambda name: parts[name])
    advice = {
        "activations": "smaller micro-batches (per_device_train_batch_size)"
        + ("" if work.checkpointing else ", gradient_checkpointing")
        + ", shorter rollouts (max_completion_length)",
        "key-value cache": "a smaller max_concurrency, or vLLM",
        "optimizer": "LoRA (use_peft), optim adamw_8bit, or more devices under fsdp2",
        "gradients": "LoRA (use_peft), or more devices under fsdp2",
        "weights": "more devices under fsdp2, or dtype bfloat16 (not under fsdp2, which trains float32)",
        "weights put together": "vLLM: with transformers each device generates with whole weights",
    }
    return f"the largest part is {largest}; {advice.get(largest, 'fewer or smaller parts, or more devices')}"


def _seconds(
    shape: ModelShape, work: Workload, device: Hardware, engines: int, under_way: int, whole: bool
) -> tuple[dict[str, float], list[str]]:
    """Time by phase.

    Decoding a token for every rollout in progress reads the weights once and each rollout's keys and values (memory
    bound), and does 2 operations per weight and rollout (compute bound): the slower of the two counts. Training does 6
    operations per weight and token, 2 more for checkpointing and 2 for each pass without gradient; an adapter saves the
    2 for the gradients of weights. Attention adds, for each 2 operations per weight, 2 per query and token of context
    (half of 4, since it is causal).
    """
    arithmetic = device.tflops * 1e12
    tokens = work.rollouts * (work.prompt_tokens + work.mean_completion_tokens)
    passes = work.iterations * ((6 if whole else 4) + 2 * work.checkpointing) + 2 * work.passes
    busy = shape.parameters - shape.embedding_parameters
    attention = shape.layers * shape.queries * (work.prompt_tokens + work.mean_completion_tokens)
    update = passes * (busy + attention) * tokens / (arithmetic * work.mfu * work.devices)
    group = max(work.tensor_parallel if work.generation != "transformers" else 1, 1)
    under_way = max(min(under_way, -(-work.rollouts // engines)), 1)
    waves = work.rollouts / engines / under_way
    mean_context = work.prompt_tokens + work.mean_completion_tokens / 2
    read = busy * 2 + under_way * mean_context * kv_bytes_per_token(shape)
    per_token = max(
        read / (device.bandwidth_gbs * 1e9 * work.bandwidth_share * group),
        2 * busy * under_way / (arithmetic * 0.5 * group),
    )
    generation = waves * work.mean_completion_tokens * per_token
    tools = max(waves, 1.0) * max(work.turns - 1, 0) * work.tool_s
    notes = [
        f"{work.mean_completion_tokens:,} tokens per completion, {work.turns:g} turns per rollout, "
        f"{work.tool_s:g} s per call",
        f"training at {work.mfu:.0%} of {device.tflops:g} TFLOP/s, {passes} operations per weight and token",
        f"decoding at {work.bandwidth_share:.0%} of {device.bandwidth_gbs:g} GB/s, {under_way} rollouts at a time on "
        f"each of {engines} engines",
        "not counted: prefill, loading, weight sync, checkpoints, the longest rollout of a batch",
    ]
    return {"rollouts": generation, "tools": tools, "update": update}, notes


def table(name: str, plan: Plan, shape: ModelShape, work: Workload, device: Hardware) -> str:
    """The plan for the terminal."""
    lines = [f"{name}: {shape.parameters / 1e9:.2f} billion weights, {work.rollouts} rollouts per step"]
    for title, parts in (
        (f"memory of a training device ({work.devices} of them), during the update", plan.training_gib),
        ("... during generation", plan.rollout_gib),
        (f"memory of a server device ({work.generation_devices} of them)", plan.server_gib),
    ):
        if parts:
            lines += ["", f"{title}:", *_rows(parts, "GiB")]
    lines.append(
        f"  {'of':24}{device.memory_gib:10.1f} GiB, of which {USABLE:.0%} may be used, {OVERHEAD_GIB} for the rest"
    )
    recorded = f"{plan.recorded_gb:.1f} GB of rollouts per 1,000 steps (record_every, record_max_tokens)"
    lines += [
        "",
        "a step:",
        *_rows(plan.step_s, "s"),
        "",
        f"recorded: {recorded}",
        "",
        "assumed:",
        *(f"  {note}" for note in plan.assumptions),
    ]
    lines += (
        ["", *(f"DOES NOT FIT: {problem}" for problem in plan.problems)] if plan.problems else ["", "everything fits"]
    )
    return "\n".join(lines)


def _rows(parts: dict[str, float], unit: str) -> Sequence[str]:
    rows = [f"  {name:24}{value:10.2f} {unit}" for name, value in parts.items()]
    return [*rows, f"  {'in all':24}{sum(parts.values()):10.2f} {unit}"]
