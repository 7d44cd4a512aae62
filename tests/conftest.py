from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")  # as the command line does, see gtpo.rollout.backends.transformers

LONGEST_FIRST = (
    "training/test_distributed.py", "lab/test_study.py", "sandbox/test_behaviours.py", "examples/test_minimal.py",
    "rollout/test_transformers_backend.py", "training/test_durability.py", "lab/test_tiny.py",
    "lab/test_gpu_benchmark.py", "training/test_overlap.py", "training/test_overlap_faults.py",
    "tasks/test_math_adversarial.py", "training/test_trainer.py", "lab/test_tabular.py", "sandbox/test_local.py",
    "evaluation/test_eval.py", "rollout/test_families.py", "sandbox/test_soak.py", "test_readme.py",
)  # fmt: skip
"""Files that take half a minute or more. One process runs all of a file (`--dist loadfile`): begun late, it would keep
the others waiting at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See `LONGEST_FIRST`; the order is otherwise kept."""
    here = Path(__file__).parent
    place = {here / name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real problems: $GTPO_DATA_DIR, or shared/data beside the repository; skips where there is none."""
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    folder = Path(os.environ.get("GTPO_DATA_DIR", default))
    if not folder.is_dir():
        pytest.skip(f"no folder of problems at {folder}; set GTPO_DATA_DIR")
    return folder


@pytest.fixture(scope="session")
def tiny_tokenizer():
    from gtpo.lab.tiny.model import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="session")
def qwen_tokenizer(tiny_tokenizer):
    """A character tokenizer with the chat template of Qwen2.5-Instruct, as TRL ships it."""
    from importlib.resources import files

    from gtpo.testing import with_chat_template

    template = files("trl").joinpath("chat_templates", "qwen2_5.jinja").read_text(encoding="utf-8")
    return with_chat_template(tiny_tokenizer, template, end="<|im_end|>", specials=("<|im_start|>", "<|im_end|>"))


@pytest.fixture(scope="session")
def sandbox():
    """Two programs at a time."""
    from gtpo.sandbox import LocalSandbox

    box = LocalSandbox(max_workers=2)
    yield box
    box.close()


@pytest.fixture(scope="session")
def byte_model_dir(tmp_path_factory, byte_tokenizer):
    """A model that no test looks at the words of, and a tokenizer that can say any text."""
    from gtpo.lab.tiny.model import make_model

    folder = tmp_path_factory.mktemp("byte-model")
    make_model(byte_tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


CHATML = (
    "{%- for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A token per byte, so that any text can be said; ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|pad|>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    fast.chat_template = CHATML
    return fast
