"""`gtpo plan`: estimate memory and time of a run from the configuration of `gtpo train`, before it starts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from trl import ModelConfig

from gtpo._files import write_text
from gtpo._text import show
from gtpo.commands.arguments import CommandLine
from gtpo.commands.train import ProblemArguments
from gtpo.errors import ConfigError
from gtpo.planning import HARDWARE, Hardware, ModelShape, Workload, make_plan, shape_of
from gtpo.planning.plan import table
from gtpo.training.config import GTPOConfig


@dataclass
class PlanArguments:
    """Hardware and rollouts to plan for."""

    device: str = field(
        default="h100-80gb",
        metadata={"help": "Type of device: " + ", ".join(HARDWARE) + ". The next three options override its figures."},
    )
    device_memory_gib: float | None = field(default=None, metadata={"help": "Memory of one device, in GiB."})
    device_tflops: float | None = field(
        default=None, metadata={"help": "Peak 16-bit throughput of one device, in TFLOP/s."}
    )
    device_bandwidth_gbs: float | None = field(
        default=None, metadata={"help": "Memory bandwidth of one device, in GB/s."}
    )
    devices: int = field(
        default=1, metadata={"help": "Number of training devices on all nodes (accelerate's processes)."}
    )
    sharding: Literal["none", "zero2", "zero3", "fsdp2"] = field(
        default="none", metadata={"help": "How accelerate shards the model over the training devices."}
    )
    generation_devices: int = field(
        default=0, metadata={"help": "Number of devices of the vLLM server; needed with vllm_mode server."}
    )
    server_tensor_parallel: int = field(
        default=1, metadata={"help": "Number of server devices that share one copy of the model."}
    )
    prompt_tokens: int = field(default=512, metadata={"help": "Length of the longest prompt, in tokens."})
    mean_completion_tokens: int | None = field(
        default=None,
        metadata={"help": "Mean length of a completion, in tokens; by default 40%% of max_completion_length."},
    )
    mean_turns: float | None = field(
        default=None, metadata={"help": "Mean number of turns per rollout; by default half of max_turns."}
    )
    tool_s: float = field(default=0.2, metadata={"help": "Mean duration of a tool call, in seconds."})
    mfu: float = field(
        default=0.35,
        metadata={"help": "Model FLOP utilisation in training, as a fraction of the peak throughput, in (0, 1]."},
    )
    bandwidth_share: float = field(
        default=0.5, metadata={"help": "Fraction of the memory bandwidth that decoding reaches, in (0, 1]."}
    )
    output: str | None = field(
        default=None, metadata={"help": "JSON file to write the plan to; by default the plan is only printed."}
    )


@dataclass
class PlannedConfig(GTPOConfig):
    """The options of `gtpo train`, without the checks against this machine."""

    def __post_init__(self) -> None:
        if isinstance(self.bf16, str):
            self.bf16 = self.bf16.lower() == "true"


COMMAND_LINE = CommandLine(
    "gtpo plan",
    "Estimate memory and time of a training run before it starts. Takes the options of gtpo train too.",
    (PlanArguments, ProblemArguments, PlannedConfig, ModelConfig),
    usage="--model MODEL [--device NAME] [--config FILE.yaml] [--OPTION VALUE ...]",
)


def main(argv: Sequence[str]) -> int:
    """Parse, plan, print; exit status 1 if the run does not fit."""
    plan_args, _, args, model_args = COMMAND_LINE.parse(argv)
    name = model_args.model_name_or_path
    if not name:
        raise ConfigError("no model: give --model, a folder, a Hub id, or a known name")
    shape, device = shape_of(name), hardware(plan_args)
    work = workload(plan_args, args, model_args, shape)
    plan = make_plan(shape, work, device)
    show(table(name, plan, shape, work, device))
    if plan_args.output:
        document = {"model": name, "shape": asdict(shape), "workload": asdict(work), "device": asdict(device)}
        write_text(Path(plan_args.output), json.dumps({**document, "plan": asdict(plan)}, indent=1) + "\n")
    return 0 if plan.fits else 1


def hardware(args: PlanArguments) -> Hardware:
    """The device that the options describe.

    Raises:
        ConfigError: the type of device is unknown.
    """
    if args.device not in HARDWARE:
        raise ConfigError(f"device: {args.device!r} is unknown; known devices: {', '.join(HARDWARE)}")
    known = HARDWARE[args.device]
    return Hardware(
        args.device_memory_gib or known.memory_gib,
        args.device_tflops or known.tflops,
        args.device_bandwidth_gbs or known.bandwidth_gbs,
    )


def workload(plan: PlanArguments, args: GTPOConfig, model: ModelConfig, shape: ModelShape) -> Workload:
    """The work of one step under this configuration.

    Raises:
        ConfigError: options contradict each other.
    """
    if plan.devices < 1:
        raise ConfigError(f"devices must be at least 1, got {plan.devices}")
    batch = args.per_device_train_batch_size * plan.devices
    rollouts = args.generation_batch_size or batch * (args.steps_per_generation or args.gradient_accumulation_steps)
    per_step = max(rollouts // batch, 1)
    if rollouts % (args.num_generations or 1):
        raise ConfigError(
            f"{rollouts} rollouts per step (per_device_train_batch_size x devices x gradient_accumulation_steps) are "
            f"not a multiple of num_generations {args.num_generations}"
        )
    server = args.use_vllm and args.vllm_mode == "server"
    if server and plan.generation_devices < 1:
        raise ConfigError("vllm_mode server needs --generation_devices, the number of devices of the vLLM server")
    completion = args.max_completion_length or 2048
    longest = min(completion, args.max_context - plan.prompt_tokens) if args.max_context else completion
    targets = model.lora_target_modules or ["all-linear"]
    bits16 = bool(args.bf16 is None or args.bf16 or args.fp16)
    weight_bytes = 2 if model.dtype in ("bfloat16", "float16", "auto") else 4  # checkpoints of today are 16 bit
    if plan.sharding == "fsdp2" and bits16 and not model.use_peft:
        weight_bytes = 4  # accelerate trains float32 weights there, whatever they are loaded as
    old = args.gradient_accumulation_steps % (per_step * args.num_iterations) != 0
    old = old or (args.use_vllm and args.vllm_importance_sampling_correction)
    trainable = (
        shape.lora_parameters(model.lora_r, [targets] if isinstance(targets, str) else targets)
        if model.use_peft
        else None
    )
    trainable_bytes = 4 if trainable else weight_bytes
    return Workload(
        rollouts=rollouts,
        micro_batch=args.per_device_train_batch_size,
        prompt_tokens=plan.prompt_tokens,
        completion_tokens=longest,
        mean_completion_tokens=plan.mean_completion_tokens or round(0.4 * longest),
        turns=plan.mean_turns or args.max_turns / 2,
        tool_s=plan.tool_s,
        sharding=plan.sharding,
        devices=plan.devices,
        generation="server" if server else "colocate" if args.use_vllm else "transformers",
        generation_devices=plan.generation_devices,
        tensor_parallel=plan.server_tensor_parallel if server else args.vllm_tensor_parallel_size,
        gpu_memory_utilization=0.9 if server else args.vllm_gpu_memory_utilization,
        rollout_batch=args.max_concurrency or 64,
        weight_bytes=weight_bytes,
        bits16=bits16 or weight_bytes == 2,
        trainable=trainable,
        trainable_bytes=trainable_bytes,
        state_bytes=2 if "8bit" in str(args.optim) else 2 * trainable_bytes,
        checkpointing=bool(args.gradient_checkpointing),
        reference=bool(args.beta) and not model.use_peft,
        passes=bool(old) + bool(args.beta),
        iterations=args.num_iterations,
        sleep=args.use_vllm and args.vllm_mode == "colocate" and args.vllm_enable_sleep_mode,
        mfu=plan.mfu,
        bandwidth_share=plan.bandwidth_share,
        record_every=args.record_every,
        record_tokens=args.record_max_tokens,
    )
