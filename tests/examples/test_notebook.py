"""The cells of the notebook run in their order, and draw what they say they do."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "understand_credit.ipynb"


@pytest.fixture
def cells():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_its_cells_run_in_order(cells, monkeypatch, capsys):
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    drawn = []
    monkeypatch.setattr(plt, "show", lambda: drawn.append(plt.gcf()))
    variables: dict[str, object] = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), variables)
    assert len(drawn) == 4
    assert set(variables["advantages"]) == {"all_turns", "first_turns", "same_turn"}
    assert "zero_uniform_groups=True" in capsys.readouterr().out
    plt.close("all")


def test_its_stored_outputs_hold_no_error_and_no_path(cells):
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert not any(output["output_type"] == "error" for output in outputs)
    assert "/tmp/" not in json.dumps([output for output in outputs if "image/png" not in output.get("data", {})])
