"""`--help` of each command, and the completion of shells, which is made from it."""

from __future__ import annotations

import dataclasses
import importlib
import re
import subprocess
import sys

import pytest

from gtpo.cli import COMMANDS, main
from gtpo.commands import train
from gtpo.commands.arguments import ALIASES, CommandLine
from gtpo.commands.help_text import NAMED, WORDS, grouped
from gtpo.rollout.config import RolloutConfig

WITH_DATACLASSES = [
    name for name, (module, _) in COMMANDS.items() if hasattr(importlib.import_module(module), "COMMAND_LINE")
]


def command_line(name: str) -> CommandLine:
    return importlib.import_module(COMMANDS[name][0]).COMMAND_LINE


def help_of(capsys, *argv: str) -> str:
    with pytest.raises(SystemExit) as left:
        main([*argv, "--help"] if argv[-1] != "--help_all" else list(argv))
    assert left.value.code == 0
    return capsys.readouterr().out


def entries(shown: str) -> dict[str, str]:
    """What the help says of each option, by its longest name."""
    parts = re.split(r"\n  (?=-)", shown)
    return {re.findall(r"--(\w+)", part.split("  ")[0])[-1]: " ".join(part.split()) for part in parts[1:]}


@pytest.mark.parametrize("name", WITH_DATACLASSES)
def test_every_option_that_gtpo_defines_is_shown_once_with_its_kind_and_its_text(capsys, name):
    command = command_line(name)
    shown = help_of(capsys, *command.prog.split()[1:])
    assert shown.startswith(f"usage: {command.prog} ")
    assert command.about in " ".join(shown.split())
    found = entries(shown)
    groups, inherited = grouped(command.types)
    ours = [option for options in groups.values() for option in options]
    assert len(ours) == len(set(ours))
    assert set(found) == {"config", "help", *ours, *(["help_all"] if inherited else [])}
    for kind in command.types:
        for field in dataclasses.fields(kind):
            if kind.__module__.startswith("gtpo") and field.name in ours:
                said = found[field.name]
                assert re.search(r"INT|FLOAT|TEXT|NAME|JSON|\{", said), said
                assert len(said.split()) > 3, f"{field.name} has no text"


def test_types_choices_and_defaults_are_those_of_the_fields(capsys):
    found = entries(help_of(capsys, "train"))
    assert "--alpha FLOAT" in found["alpha"]
    assert found["alpha"].endswith("[default: 0.5]")
    assert "--max_problems INT" in found["max_problems"], "an int that may be None"
    assert "default:" not in found["max_problems"], "None is no default"
    assert "{keep,mask,drop}" in found["no_answer_rollouts"]
    assert "[default: keep]" in found["no_answer_rollouts"]
    assert "{true,false}" in found["graded"]
    assert "--model TEXT" in found["model_name_or_path"], "the short name"


def test_the_demo_shows_its_own_defaults(capsys):
    from importlib.resources import files

    import yaml

    demo = yaml.safe_load((files("gtpo.lab.tiny") / "demo.yaml").read_text())
    assert demo["max_steps"] != -1
    assert entries(help_of(capsys, "demo"))["max_steps"].endswith(f"[default: {demo['max_steps']}]")


def test_the_options_of_trl_are_counted_and_shown_on_demand(capsys):
    brief, whole = help_of(capsys, "train"), help_of(capsys, "train", "--help_all")
    _, inherited = grouped(train.COMMAND_LINE.types)
    assert f"{len(inherited)} more options" in brief
    assert "adam_beta1" in inherited
    assert "--adam_beta1" not in brief
    assert set(entries(whole)) == set(entries(brief)) | set(inherited)
    assert f"({len(inherited)} options)" in whole


def test_texts_of_our_own_are_shown_whole_and_long_ones_of_trl_cut(capsys):
    brief, whole = (entries(help_of(capsys, "train", *more)) for more in ((), ("--help_all",)))
    assert "0: save by save_steps only." in brief["save_minutes"]
    cut = {name for name in brief if brief[name] != whole[name]}
    assert cut
    assert not cut & {field.name for field in dataclasses.fields(RolloutConfig)}


def test_no_group_names_an_option_that_no_command_has():
    options = {field.name for name in WITH_DATACLASSES for kind in command_line(name).types for field in
               dataclasses.fields(kind)}  # fmt: skip
    named = {option for names in NAMED.values() for option in names.split()}
    assert named | set(WORDS) | set(ALIASES.values()) <= options


def test_doctor_and_completion_have_help_too(capsys):
    for name, option in (("doctor", "--adversarial"), ("completion", "zsh")):
        assert main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: gtpo {name}")
        assert option in shown


def test_a_reader_that_leaves_causes_no_traceback():
    process = subprocess.Popen(
        [sys.executable, "-m", "gtpo", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 141


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    import contextlib
    import io

    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        assert main(["completion", "bash"]) == 0
    path = tmp_path_factory.mktemp("completion") / "gtpo.sh"
    path.write_text(shown.getvalue())
    return path


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        (["gtpo", "tr"], "train", "eval"),
        (["gtpo", "train", "--norm"], "--normalize_over", "--gamma"),
        (["gtpo", "train", "--normalize_over", ""], "first_turns", "--gamma"),
    ],
)
def test_bash_completes_commands_options_and_choices(bash_script, typed, offered, not_offered):
    words = " ".join(f"'{word}'" for word in typed)
    script = (
        f"source {bash_script}; COMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; "
        "$(complete -p gtpo | sed 's/.*-F \\([^ ]*\\).*/\\1/') gtpo; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    found = subprocess.run(["bash", "-c", script], capture_output=True, text=True).stdout.split()
    assert offered in found
    assert not_offered not in found


def test_a_shell_without_completion_is_refused(capsys):
    assert main(["completion", "ksh"]) == 2
    assert "bash" in capsys.readouterr().err
