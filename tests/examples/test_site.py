"""What the site's own checks find: public names without documentation, links to files outside docs/."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="MkDocs is not installed (make docs)")
pytest.importorskip("griffe", reason="griffe is not installed (make docs)")

HOOKS = Path(__file__).resolve().parents[2] / "docs" / "hooks.py"


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", HOOKS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_public_name_has_a_docstring(hooks):
    assert hooks.undocumented() == []


def test_one_without_a_docstring_is_found(hooks, monkeypatch):
    monkeypatch.setattr(hooks, "PUBLIC", {"gtpo.cli": ("COMMANDS", "main")})
    (fault,) = hooks.undocumented()
    assert "gtpo.cli.COMMANDS" in fault


def test_a_module_without_all_is_refused(hooks, monkeypatch):
    monkeypatch.setattr(hooks, "PUBLIC", {"gtpo.cli": None})
    with pytest.raises(ValueError, match=r"gtpo\.cli has no __all__"):
        hooks.public_names()


@pytest.mark.parametrize(
    ("target", "page"),
    [
        ("CHANGELOG.md", "changelog.md"),
        ("recipes/scale/24gb.yaml", "recipes/scale.md"),
        ("recipes/verl", "recipes/verl.md"),
        ("examples/gtpo_minimal.py", "examples/gtpo_minimal.md"),
        ("docs/tasks.md", None),
        ("src/gtpo/cli.py", None),
    ],
)
def test_links_out_of_the_docs_lead_to_generated_pages(hooks, target, page):
    assert hooks.page_of(target) == page
    assert page is None or page in hooks.generated_pages()
