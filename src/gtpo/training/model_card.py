"""The card of a trained model: its base model, how it was trained, and the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from gtpo._files import write_text
from gtpo.credit_assignment import CreditSettings
from gtpo.versions import installed_versions

PAPER = {
    "title": "Empowering Multi-Turn Tool-Integrated Reasoning with Group Turn Policy Optimization",
    "id": "2511.14846",
    "citation": """@article{ding2025gtpo,
  title   = {Empowering Multi-Turn Tool-Integrated Reasoning with Group Turn Policy Optimization},
  author  = {Ding, Yifeng and Le, Hung and Han, Songyang and Ruan, Kangrui and Jin, Zhenghui and Kumar, Varun and
             Wang, Zijian and Deoras, Anoop},
  journal = {arXiv preprint arXiv:2511.14846},
  year    = {2025},
}""",
}
_SETTINGS = ("algorithm", *CreditSettings.__dataclass_fields__, "similarity", "tools", "tool_format", "max_turns")
_TRAINING = ("learning_rate", "num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "seed")
_FIGURES = ("pass_rate", "invalid_calls", "calls", "turns")


def write_model_card(folder: str | Path, args: Any, model: Any, history: Sequence[Mapping[str, Any]]) -> None:
    """Write `README.md` into a model's folder.

    Args:
        folder: the folder.
        args: a `GTPOConfig`.
        model: the model; its configuration names its base model.
        history: the trainer's logs, one mapping per log.
    """
    base = getattr(model.config, "_name_or_path", "") or ""
    figures = [line for line in history if line.get("pass_rate") is not None]
    first, last = (figures[0], figures[-1]) if figures else ({}, {})
    data = ModelCardData(
        base_model=base if base and not Path(base).is_dir() else None,
        library_name="transformers",
        tags=["gtpo", "trl", args.algorithm],
        model_name=Path(args.run_dir).name,
        eval_results=[
            EvalResult("text-generation", "training problems", "training problems", "pass rate", last["pass_rate"])
        ]
        if last
        else None,
    )
    versions = ", ".join(f"{name} {version}" for name, version in installed_versions().items() if version)
    text = f"""---
{data.to_yaml()}
---

# {Path(args.run_dir).name}

Trained with {args.algorithm.upper()} by gtpo ([paper](https://arxiv.org/abs/{PAPER["id"]})) for multi-turn reasoning
with tools, from `{base or "a model made on the spot"}`.

| rollouts of training | first step | step {last.get("step", "-")} |
|---|---:|---:|
{_rows((name.replace("_", " "), _number(first.get(name)), _number(last.get(name))) for name in _FIGURES)}

The pass rate is that of sampled rollouts on training problems; `gtpo eval` measures it on others.

| setting | value |
|---|---|
{_rows((f"`{name}`", f"`{getattr(args, name)}`") for name in (*_SETTINGS, *_TRAINING))}

Versions: {versions}.

```bibtex
{PAPER["citation"]}
```
"""
    write_text(Path(folder) / "README.md", text)


def _rows(rows: Any) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.3f}"
