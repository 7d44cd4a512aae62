"""The page on real runs: the embedded default's, made here, and the one of recipes/smollm2-gsm8k where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from gtpo.cli import main
from gtpo.report import write_page

SMOLLM2 = Path(__file__).resolve().parents[2] / "runs" / "smollm2-gsm8k" / "gtpo"


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory):
    run = tmp_path_factory.mktemp("tiny") / "run"
    small = "--cold_start_traces 64 --cold_start_steps 2 --train_problems 32 --eval_problems 8 --max_steps 2"
    batch = "--num_generations 4 --per_device_train_batch_size 8 --save_steps 2 --disable_tqdm true"
    assert main(["demo", "--run_dir", str(run), *small.split(), *batch.split()]) == 0
    return run


@pytest.fixture(params=["tiny", "smollm2"])
def real_run(request):
    if request.param == "tiny":
        return request.getfixturevalue("tiny_run")
    if not (SMOLLM2 / "rollouts").is_dir():
        pytest.skip(f"no run in {SMOLLM2}: recipes/smollm2-gsm8k/run.sh makes it")
    return SMOLLM2


def test_each_view_filter_control_and_link_works_on_it(opened, real_run, tmp_path):
    path = tmp_path / "report.html"
    write_page([real_run], path)
    with opened(path) as page:
        assert page.locator('[data-chart="pass_rate"] polyline, [data-chart="pass_rate"] circle').count() == 1
        assert page.locator('[data-chart="time"] polyline').count() >= 4
        page.keyboard.press("2")
        page.wait_for_selector("#group .advantage")
        page.get_by_label("normalize_over").select_option("same_turn")
        page.wait_for_selector("#flips:not(:empty)")
        link = page.url
        page.locator("#group th button").first.click()
        page.wait_for_selector("#app[data-view=rollout] #verdict")
        for choice in ("logprob", "mask", "none", "advantage"):
            page.get_by_label("tokens by").select_option(choice)
        page.keyboard.press("4")
        page.wait_for_selector("#results tr.row")
        page.get_by_label("outcome").select_option("0")
        page.wait_for_selector("#results td.failed")
        assert page.locator("#results td.passed").count() == 0
    with opened(link) as page:
        page.wait_for_selector("#group .advantage")
        assert page.get_by_label("normalize_over").input_value() == "same_turn"
