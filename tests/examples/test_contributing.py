"""The examples in CONTRIBUTING.md and in the pages of the site run."""

from __future__ import annotations

import asyncio
import inspect
import re
from pathlib import Path

import pytest

from gtpo._own_code import imported
from gtpo.cli import main
from gtpo.lab.tiny.model import make_model
from gtpo.tasks.problems import Problem
from gtpo.tasks.verifiers import get_verifier
from gtpo.types import ToolCall

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: str, language: str = "python") -> list[str]:
    return re.findall(rf"```{language}\n(.*?)\n```\n", (ROOT / page).read_text(encoding="utf-8"), flags=re.S)


EXAMPLES = {block.splitlines()[0].removeprefix("# test: "): block for block in blocks("CONTRIBUTING.md")}


def test_there_is_an_example_for_each_kind_of_addition():
    assert set(EXAMPLES) == {"a model family", "a tool", "a reward", "a verifier", "an estimator"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_tests_in_the_example_pass(name, request):
    variables: dict[str, object] = {}
    exec(compile(EXAMPLES[name], f"CONTRIBUTING.md: {name}", "exec"), variables)
    tests = [thing for key, thing in variables.items() if key.startswith("test_")]
    assert tests
    for test in tests:
        test(**{fixture: request.getfixturevalue(fixture) for fixture in inspect.signature(test).parameters})


def test_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:src|tests|docs)/[\w./]+\.\w+)`|\]\((docs/[\w./]+)\)", text)
    for path in {one or other for one, other in paths if "NAME" not in one}:
        assert (ROOT / path).exists(), path
    targets = re.findall(r"make ([a-z-]+)", text)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.M), target


def test_the_example_of_the_first_page_prints_advantages(capsys):
    (code,) = blocks("docs/index.md")
    exec(compile(code, "docs/index.md", "exec"), {})
    assert "[-0.7069, -0.6126,  0.0000]" in capsys.readouterr().out


def test_the_tool_and_reward_of_the_training_page_are_used(tmp_path, monkeypatch, tiny_tokenizer):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks("docs/train.md")
    Path("shop.py").write_text(code)
    tool = imported("./shop.py:Shop", "tools")()
    result = asyncio.run(tool.open(0).run(ToolCall("", "price", {"thing": "pear"})))
    assert result.text == "5"
    verdicts = get_verifier("./shop.py:verdict").verify_many(
        ["It costs 5.", "6", "15", "5 or 6"], [Problem(id="1", question="?", answer="5")] * 4
    )
    assert [verdict.passed for verdict in verdicts] == [True, False, False, False]

    make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained("model")
    tiny_tokenizer.save_pretrained("model")
    (trace,) = (block for block in blocks("docs/train.md", "json") if "messages" in block)
    Path("traces.jsonl").write_text(f"{trace}\n" * 4)
    sft = "--model model --traces traces.jsonl --tool_format fenced --tools ./shop.py:Shop --max_steps 1 --bf16 false"
    assert main(["sft", *sft.split(), "--system_prompt", "", "--run_dir", "cold"]) == 0
    Path("problems.jsonl").write_text('{"question": "A pear?", "answer": "5", "domain": "shopping"}\n' * 4)
    options = (
        "--model model --train_file problems.jsonl --tool_format fenced --tools ./shop.py:Shop "
        "--verifier ./shop.py:verdict --run_dir runs/shop --max_steps 1 --num_generations 2 "
        "--per_device_train_batch_size 4 --max_turn_tokens 8 "
        "--bf16 false --report_to none --disable_tqdm true"
    )
    assert main(["train", *options.split()]) == 0
    assert Path("runs/shop/model").is_dir()
