"""YAML of the user's: whatever is wrong with it is one sentence that names the file."""

from __future__ import annotations

import pytest

from gtpo._yaml import read_yaml
from gtpo.cli import main
from gtpo.errors import ConfigError, DataError
from gtpo.lab.study import read_study
from gtpo.run_directory import RunFiles
from gtpo.tasks.sources import problems_from
from gtpo.testing import made_up_run

LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{now}: &{now} [{', '.join([f'*{before}'] * 10)}]\n" for before, now in zip("abcdefgh", "bcdefghi", strict=True)
)
BROKEN = {
    "deep": ("[" * 500 + "]" * 500, "nested more than 50 levels deep"),
    "deep enough to parse": ("a: " + "[" * 80 + "]" * 80, "nested more than 50 levels deep"),
    "alias of itself": ("a: &a [*a]", "nested more than 50 levels deep \\(an alias of itself\\?\\)"),
    "aliases that blow up": (LAUGHS, "holds more than 100,000 values, aliases resolved"),
    "an integer of 5,000 digits": (f"seed: {'9' * 5000}", "holds a value that can't be read: "),
    "an integer of 5,000 digits, hexadecimal": (f"seed: 0x{'f' * 5000}", "holds an integer of more than 64 bits"),
    "no date": ("day: 2026-13-41", "holds a value that can't be read: "),
    "syntax": ("a: [1,", "not valid YAML: "),
    "bytes": (b"a: \xff", "can't be read: not UTF-8"),
    "a folder": (None, "can't be read: Is a directory"),
}


def written(path, content):
    if content is None:
        path.mkdir()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)
    return path


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_wrong_is_said_in_one_line(tmp_path, name):
    content, said = BROKEN[name]
    with pytest.raises(ValueError, match=said) as error:
        read_yaml(written(tmp_path / "a.yaml", content))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_aliases_of_ordinary_size_are_resolved(tmp_path):
    path = written(tmp_path / "a.yaml", "base: &base {gamma: 0.9}\nother: {<<: *base, alpha: 0.1}\n")
    assert read_yaml(path)["other"] == {"gamma": 0.9, "alpha": 0.1}


@pytest.mark.parametrize("name", BROKEN)
def test_every_reader_names_the_file(tmp_path, name, capsys):
    content, said = BROKEN[name]
    path = written(tmp_path / "a.yaml", content)
    assert main(["train", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gtpo train: {path}: ")
    assert err.count("\n") == 1
    with pytest.raises(ConfigError, match=f"a.yaml: {said}"):
        read_study(path)
    with pytest.raises(DataError, match=f"a.yaml: {said}"):
        problems_from(str(path))


@pytest.mark.parametrize("name", BROKEN)
def test_a_config_that_the_report_can_not_read_is_one_sentence(tmp_path, name, capsys):
    content, said = BROKEN[name]
    run = made_up_run(tmp_path / "run", steps=1)
    (run / "config.yaml").unlink()
    written(run / "config.yaml", content)
    with pytest.raises(DataError, match=f"config.yaml: {said}.*; fix the file, or remove it"):
        RunFiles(run).settings()
    assert main(["report", str(run)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"gtpo report: {run / 'config.yaml'}: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("weight", [".inf", ".nan", "-1", "0", "true"])
def test_a_weight_of_a_mixture_is_a_finite_number_above_0(tmp_path, weight):
    path = written(tmp_path / "mix.yaml", f"sources: [{{source: a.jsonl, weight: {weight}}}]")
    with pytest.raises(DataError, match=r"weight of a.jsonl must be a finite number above 0"):
        problems_from(str(path))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--max_steps", "9" * 5000], "--max_steps: invalid int value: '999"),
        (["--max_turns", "9" * 30], "max_turns: an integer of more than 64 bits"),
        (["--learning_rate", "inf"], "learning_rate must be finite, got inf"),
        (["--max_problems", "9" * 30], "max_problems: an integer of more than 64 bits"),
        (["--resume", "perhaps"], "resume must be true, false or auto, got 'perhaps'"),
    ],
)
def test_options_out_of_all_range_are_one_sentence(options, said, capsys):
    assert main(["train", *options]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert len(err) < 400
