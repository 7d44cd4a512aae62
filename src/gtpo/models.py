"""Loading tokenizers and models: from where, in which dtype, onto which device."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import torch

from gtpo._malloc import keep_freed_memory
from gtpo.errors import ConfigError

_HUB_TIMEOUT_S = 5.0
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Placement:
    """The device and dtype of a model.

    Attributes:
        device: None leaves the model on the CPU, for a trainer that moves it.
        dtype: `auto` (the checkpoint's own) or the name of a torch dtype.
    """

    device: torch.device | None
    dtype: str


def placement(dtype: str | None, *, training: bool) -> Placement:
    """Choose device and dtype: generation uses the accelerator if there is one; a trainer moves the model itself.

    Args:
        dtype: the requested dtype; None: float32 for training, the checkpoint's own for generation.
        training: whether the model is for a trainer.

    Raises:
        ConfigError: the dtype is unknown.
    """
    chosen = dtype or ("float32" if training else "auto")
    if chosen not in DTYPES:
        raise ConfigError(f"--dtype {chosen}: must be one of {', '.join(DTYPES)}")
    device = None if training or not torch.accelerator.is_available() else torch.accelerator.current_accelerator()
    return Placement(device, chosen)


def load_tokenizer(name: str | None, *, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a model, with padding on the left.

    Raises:
        ConfigError: no model is given, or it can't be found.
    """
    from transformers import AutoTokenizer

    if not name:
        raise ConfigError("no model: give --model FOLDER_OR_HUB_ID")
    if _looks_like_folder(name) and not Path(name).is_dir():
        raise ConfigError(f"--model {name}: no such folder")
    with _offline_if_the_hub_is(name) as offline:
        try:
            return AutoTokenizer.from_pretrained(
                name, padding_side="left", revision=revision, trust_remote_code=trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise _not_loaded(name, "its tokenizer", error, offline) from error


def load_model(name: str | None, *, training: bool = False, dtype: str | None = None, **options: Any) -> Any:
    """A causal language model. A folder may hold a PEFT adapter.

    Args:
        name: a folder or Hub id.
        training: see `placement`.
        dtype: see `placement`.
        options: passed on to `from_pretrained`, except those that are None.

    Raises:
        ConfigError: the model can't be loaded, or a package that an option needs is missing.
    """
    from transformers import AutoModelForCausalLM

    place = placement(dtype, training=training)
    if not torch.accelerator.is_available():
        keep_freed_memory()
    given = {key: value for key, value in options.items() if value is not None}
    given["dtype"] = place.dtype if place.dtype == "auto" else getattr(torch, place.dtype)
    with _offline_if_the_hub_is(name or "") as offline:
        try:
            model = AutoModelForCausalLM.from_pretrained(name or "", **given)
        except (OSError, ValueError, ImportError) as error:
            raise _not_loaded(name, "the model", error, offline) from error
    is_placed = getattr(model, "hf_device_map", None) is not None  # quantised models are placed as they are loaded
    return model if place.device is None or is_placed else cast(Any, model).to(place.device)


@contextmanager
def _offline_if_the_hub_is(name: str) -> Iterator[bool]:
    """Inside, a Hub that does not answer is not contacted: by default each of many files is tried five times.

    Yields:
        Whether only the cache is used, because the Hub does not answer.
    """
    from huggingface_hub import constants

    alone = not Path(name).is_dir() and not constants.is_offline_mode() and not _hub_answers()
    former = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = former or alone
    try:
        yield alone
    finally:
        constants.HF_HUB_OFFLINE = former


@functools.cache
def _hub_answers() -> bool:
    from huggingface_hub import constants

    try:
        httpx.head(constants.ENDPOINT, timeout=_HUB_TIMEOUT_S)
    except httpx.HTTPError:
        return False
    return True


def _not_loaded(name: str | None, what: str, error: Exception, offline: bool) -> ConfigError:
    if offline:
        return ConfigError(
            f"--model {name}: {what} can't be loaded: it is not a local folder, the Hugging Face Hub does not answer, "
            "and the local cache does not have it. Connect to the network, or give a folder"
        )
    return ConfigError(f"--model {name}: {what} can't be loaded: {error}")


def _looks_like_folder(name: str) -> bool:
    return name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1
