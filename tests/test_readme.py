"""What the README tells people to do is really done here."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from gtpo.cli import main
from gtpo.lab.tiny.model import make_model

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")

SMALL = {
    "plan": [],
    "make-traces": [],
    "sft": "--max_steps 2 --per_device_train_batch_size 2 --bf16 false --report_to none --disable_tqdm true",
    "train": "--max_steps 1 --num_generations 2 --gradient_accumulation_steps 1 --per_device_train_batch_size 4 "
    "--max_turn_tokens 8 --bf16 false --report_to none --disable_tqdm true",
    "eval": "--max_turn_tokens 8 --max_problems 4",
    "report": [],
    "compare": [],
    "study": "--threads 1",
}
"""What makes the README's commands run in seconds; a later option wins over an earlier one."""

STUDY = """
train: {model: runs/gtpo/model, train_file: gsm8k_train.jsonl, tool_format: fenced, max_steps: 1, num_generations: 2,
  per_device_train_batch_size: 4, max_turn_tokens: 8, bf16: false, report_to: none, disable_tqdm: true}
evaluate: {problems: [gsm8k_test.jsonl]}
variants: {gtpo: {}}
seeds: [1]
"""


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def test_the_first_line_says_which_gtpo_this_is():
    assert "Group Turn Policy Optimization" in README.splitlines()[0]
    assert "2511.14846" in README


def test_the_python_example_prints_the_advantages_that_the_formulas_give(capsys):
    (code,) = blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    shown = capsys.readouterr().out
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d*", shown)]
    returns = [[0.9 * 0.8, 0.9 * 1 - 0.1, 1.0], [0.9 * 0.3, 0.5 * 0.6]]
    first, second = returns[0][0], returns[1][0]
    mean, deviation = (first + second) / 2, (first - second) / 2**0.5
    (a, b, c), (d, e) = ([(one - mean) / (deviation + 1e-4) for one in row] for row in returns)
    assert numbers == pytest.approx([a, a, 0, b, 0, c, d, 0, e, e, 0, 0], abs=2e-4)


@pytest.fixture
def hub(monkeypatch, tmp_path, tiny_tokenizer):
    """The Hub as the README uses it: a model by its id, and GSM8K with rows as they are published."""
    folder = tmp_path / "hub-model"
    make_model(tiny_tokenizer, seed=0, hidden_size=32, layers=1).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    row = {"question": "How much is {}/2?", "answer": "It is {}/2 = <<{}/2={}>>{}.\n#### {}"}
    rows = [{"question": row["question"].format(2 * n), "answer": row["answer"].format(2 * n, 2 * n, n, n, n)}
            for n in range(24, 32)]  # fmt: skip
    asked = []

    def load_dataset(name, config=None, *, split, **options):
        asked.append((name, config, split))
        return rows

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return folder, asked


def test_the_commands_for_an_own_model_run_in_their_order(tmp_path, monkeypatch, hub):
    monkeypatch.chdir(tmp_path)
    model, asked = hub
    commands = [shlex.split(line, comments=True) for block in blocks("bash") for line in block.splitlines()]
    commands = [command for command in commands if command[0] == "gtpo"]
    assert [command[1] for command in commands] == [
        *("make-traces", "sft", "train", "eval", "eval", "compare", "report", "plan", "study")
    ]
    Path("study.yaml").write_text(STUDY)
    Path("gsm8k_train.jsonl").write_text('{"question": "48/2?", "answer": "24"}\n' * 4)
    Path("gsm8k_test.jsonl").write_text('{"question": "48/2?", "answer": "24"}\n')
    Path("run.yaml").write_text("model: runs/gtpo/model\nnum_generations: 8\n")
    for _, name, *argv in commands:
        small = SMALL[name]
        argv = [str(model) if arg == "Qwen/Qwen2.5-1.5B-Instruct" else arg for arg in argv]
        assert main([name, *argv, *(small.split() if isinstance(small, str) else small)]) == 0, name
    assert Path("runs/gtpo/model").is_dir()
    assert Path("runs/gtpo/report.html").exists()
    assert {("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")} <= set(asked)
    assert "1 of 1 cells are done" in Path("runs/studies/study/report.md").read_text()


@pytest.mark.parametrize("target", ["train", "test"])
def test_the_make_targets_bootstrap_their_own_environment(target):
    assert f"make {target}" in README
    plan = subprocess.run(
        ["make", "--dry-run", "--always-make", target], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert plan.index("-m venv") < plan.index("torch==") < plan.index("requirements/pins.txt\n")


def test_make_quick_names_files_that_exist():
    plan = subprocess.run(["make", "--dry-run", "quick"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = [word for word in plan.split() if word.startswith("tests/")]
    assert len(named) > 20
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_links_lead_somewhere():
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_pins_lie_within_the_supported_ranges():
    from packaging.requirements import Requirement

    pins = dict(
        line.split(";")[0].strip().split("==")
        for line in (ROOT / "requirements" / "pins.txt").read_text().splitlines()
        if "==" in line and 'python_version < "3.11"' not in line
    )
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    text = (ROOT / "pyproject.toml").read_text()
    (listed,) = re.findall(r"^dependencies = \[(.*?)^\]", text, flags=re.S | re.M)
    requirements = [Requirement(spec) for spec in re.findall(r'"([^"]+)"', listed)]
    assert len(requirements) > 5
    for requirement in requirements:
        assert pins[requirement.name.lower()] in requirement.specifier, requirement
