"""Each view, control, filter and link of the page, in a browser."""

from __future__ import annotations

import json
import re

import pytest
from recorded import unpacked

from gtpo.credit_assignment import CreditSettings
from gtpo.report import load, write_page
from gtpo.report.glossary import glossary
from gtpo.testing import made_up_run


def view(page, name):
    page.wait_for_selector(f"#app[data-view={name}]")


def test_overview_shows_every_figure_with_its_meaning_and_every_run(opened, run, tmp_path):
    other = made_up_run(tmp_path / "other", steps=4, seed=5)
    path = tmp_path / "both.html"
    write_page([run, other], path)
    with opened(path) as page:
        chart = page.locator('[data-chart="pass_rate"]')
        assert chart.locator("polyline").count() == 2
        documented = glossary()["pass_rate"]
        title = chart.locator("figcaption").get_attribute("title")
        assert title == f"{documented['meaning']} [{documented['unit']}]"
        assert chart.locator(".reading").inner_text().split() == ["made", "other"]
        chart.locator("svg").hover()
        assert "step" in chart.locator(".reading").inner_text()
        page.get_by_role("button", name="Every logged figure").click()
        page.wait_for_selector('[data-chart="tool/ok"]')


def test_a_click_on_a_chart_leads_to_the_groups_of_that_step(opened, report):
    with opened(report) as page:
        box = page.locator('[data-chart="pass_rate"] svg').bounding_box()
        page.mouse.click(box["x"] + box["width"] - 12, box["y"] + box["height"] / 2)
        view(page, "group")
        assert "step=4" in page.url


def test_alarms_say_what_they_mean(opened, run, tmp_path):
    bad = made_up_run(tmp_path / "bad", steps=3)
    lines = [
        {"step": step, "pass_rate": 0.01, "groups/frac_all_failed": 0.9, "stop/repetition": 0.2} for step in range(1, 9)
    ]
    (bad / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = tmp_path / "bad.html"
    write_page([bad], path)
    with opened(path) as page:
        text = page.locator("#alarms").inner_text()
    assert "most groups fail altogether 90% of the groups" in text
    assert "turns repeat themselves 20.0%" in text


def test_the_group_view_shows_what_was_recorded(opened, report, run):
    turns = load(run, steps=[2]).turns
    with opened(report, "#view=group&step=2&group=1") as page:
        view(page, "group")
        members = sorted(set(turns[turns["group"] == 1]["rollout"]))
        heads = page.locator("#group th button").all_inner_texts()
        assert [int(re.findall(r"\d+", head)[0]) for head in heads] == members
        for column, rollout in enumerate(members):
            for turn, value in enumerate(turns[turns["rollout"] == rollout]["advantage"]):
                cell = page.locator(f"#group tr:nth-child({turn + 2}) td:nth-child({column + 2}) .advantage")
                assert float(cell.inner_text()) == pytest.approx(value, abs=0.006)
        page.get_by_label("group", exact=True).select_option("2")
        page.wait_for_selector("text=What is 2 + 2?")


def test_what_if_computes_again_marks_changed_signs_and_goes_back(opened, report):
    with opened(report, "#view=group&step=1&group=0") as page:
        before = page.locator("#group .advantage").all_inner_texts()
        page.get_by_label("normalize_over").select_option("same_turn")
        page.wait_for_selector("#flips:not(:empty)")
        after = page.locator("#group .advantage").all_inner_texts()
        assert before != after
        signs = sum(
            (float(a) > 0) != (float(b) > 0) and "0.00" not in a + b for a, b in zip(before, after, strict=True)
        )
        assert page.locator("#group .flips").count() >= signs
        assert "s=same_turn" in page.url
        page.locator("#reset").click()
        page.wait_for_selector("#reset[disabled]")
        assert page.locator("#group .advantage").all_inner_texts() == before


@pytest.mark.parametrize(("name", "value"), [("gamma", "0.5"), ("alpha", "1"), ("format_penalty", "-0.5")])
def test_the_sliders_change_the_credit(opened, report, name, value):
    with opened(report, "#view=group&step=1&group=0") as page:
        before = page.locator("#group .advantage").all_inner_texts()
        page.locator(f"#what-{name}").fill(value)
        page.wait_for_selector("#reset:not([disabled])")
        assert page.locator("#group .advantage").all_inner_texts() != before


def test_a_uniform_group_falls_silent_on_request(opened, tmp_path):
    settings = CreditSettings.paper()
    run = made_up_run(tmp_path / "run", steps=1, groups=6, group_size=2, seed=3, settings=settings)
    path = tmp_path / "report.html"
    write_page([run], path)
    rollouts = load(run).rollouts
    uniform = next(group for group, part in rollouts.groupby("group") if part["passed"].nunique() == 1)
    with opened(path, f"#view=group&group={uniform}&u=true") as page:
        assert set(page.locator("#group .advantage").all_inner_texts()) == {"0.00"}


def test_the_rollout_view_shows_the_conversation_the_verdict_and_the_tokens(opened, report, run):
    rollouts = load(run, steps=[3]).rollouts
    chosen = rollouts[(rollouts["num_turns"] > 1)].iloc[0]
    with opened(report, f"#view=rollout&step=3&rollout={chosen['rollout']}") as page:
        assert chosen["verdict"] in page.locator("#verdict").inner_text()
        assert page.locator(".message.model").count() == chosen["num_turns"]
        assert page.locator(".message.tool").count() == chosen["num_turns"] - 1
        assert page.locator(".token").count() == chosen["tokens"]
        title = page.locator(".token").first.get_attribute("title")
        assert "advantage" in title
        assert "log-probability" in title
        shades = set()
        for choice in ("advantage", "logprob", "mask", "none"):
            page.get_by_label("tokens by").select_option(choice)
            page.wait_for_timeout(50)
            shades.add(page.locator(".message.model .text").first.inner_html())
        assert len(shades) == 4
        assert "".join(page.locator(".message.model .text").first.inner_text().split())


def test_code_is_highlighted(opened, report, run):
    calls = load(run, steps=[3]).turns
    chosen = next(row for _, row in calls.iterrows() if row["calls"] and "code" in row["calls"][0])
    with opened(report, f"#view=rollout&step=3&rollout={chosen['rollout']}") as page:
        assert page.locator(".py-comment").first.inner_text() == "# a comment"


@pytest.mark.parametrize(
    ("fragment", "test"),
    [
        ("outcome=1", lambda r: r["passed"]),
        ("outcome=0&min=2", lambda r: ~r["passed"] & (r["num_turns"] >= 2)),
        ("odd=success-", lambda r: r["passed"] & (r["min_advantage"] < 0)),
        ("odd=failure%2B", lambda r: ~r["passed"] & (r["max_advantage"] > 0)),
        ("at=2&max=3", lambda r: (r["step"] == 2) & (r["num_turns"] <= 3)),
        ("stop=answer", lambda r: r["stop_reason"] == "answer"),
        ("q=WHAT+is+3+%2B+1", lambda r: r["question"] == "What is 3 + 1?"),
    ],
)
def test_filters_and_search_find_what_the_frames_have(opened, report, run, fragment, test):
    rollouts = load(run).rollouts
    with opened(report, f"#view=find&{fragment}") as page:
        view(page, "find")
        count = int(page.locator("#count").inner_text().split(" of ")[0])
    assert count == int(test(rollouts).sum())


def test_error_kinds_can_be_found(opened, report, run):
    turns = load(run).turns
    wanted = {(row["step"], row["rollout"]) for _, row in turns.iterrows() if "timeout" in row["statuses"]}
    with opened(report, "#view=find") as page:
        page.get_by_label("call", exact=True).select_option("timeout")
        page.wait_for_selector(f'#count:has-text("{len(wanted)} of")')


def test_sorting_and_opening_a_row(opened, report, run):
    highest = load(run).rollouts["max_advantage"].max()
    with opened(report, "#view=find") as page:
        page.get_by_role("button", name="highest").click()
        page.get_by_role("button", name="highest ▴").click()
        page.wait_for_selector("text=highest ▾")
        first = page.locator("#results tr.row").first
        assert float(first.locator("td").nth(8).inner_text()) == pytest.approx(highest, abs=0.006)
        first.focus()
        page.keyboard.press("Enter")
        view(page, "rollout")


def test_a_link_leads_to_exactly_this_view(opened, report):
    with opened(report, "#view=group&step=2&group=1&g=0.5") as page:
        there = page.url
        shown = page.locator("main").inner_text()
        page.get_by_role("button", name="Overview").click()
        view(page, "overview")
        page.go_back()
        view(page, "group")
        assert (page.url, page.locator("main").inner_text()) == (there, shown)
    with opened(report, there[there.index("#") :]) as page:
        assert page.locator("main").inner_text() == shown


def test_keys(opened, report):
    with opened(report) as page:
        for key, name in (("2", "group"), ("3", "rollout"), ("4", "find"), ("1", "overview"), ("3", "rollout")):
            page.keyboard.press(key)
            view(page, name)
        page.keyboard.press("[")
        page.wait_for_url(re.compile("step=3"))
        page.keyboard.press("j")
        page.wait_for_url(re.compile("rollout=1(&|$)"))
        page.keyboard.press("k")
        page.wait_for_url(re.compile("rollout=0(&|$)"))
        page.keyboard.press("n")
        view(page, "group")
        page.wait_for_url(re.compile("group=1(&|$)"))
        page.keyboard.press("/")
        view(page, "find")
        page.wait_for_selector("#find-q:focus")
        page.keyboard.type("12")  # in a field, keys are text
        assert page.locator("#find-q").input_value() == "12"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_differ_and_can_be_switched(opened, report, scheme):
    color = "document.body"
    with opened(report, color_scheme=scheme, bypass_csp=True) as page:
        paper = page.evaluate(f"getComputedStyle({color}).backgroundColor")
        assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
        page.keyboard.press("t")
        assert page.evaluate(f"getComputedStyle({color}).backgroundColor") != paper


def test_a_small_screen_needs_no_sideways_scrolling_of_the_page(opened, report):
    with opened(report, bypass_csp=True) as page:
        page.set_viewport_size({"width": 900, "height": 600})
        for key in "1234":
            page.keyboard.press(key)
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")


def test_runs_without_rollouts_or_metrics_still_open(opened, tmp_path):
    bare = made_up_run(tmp_path / "bare", steps=1)
    for file in (bare / "rollouts").iterdir():
        file.unlink()
    path = tmp_path / "bare.html"
    write_page([bare], path)
    with opened(path, "#view=group") as page:
        assert "recorded no rollouts" in page.locator("main").inner_text()
        page.keyboard.press("3")
        view(page, "rollout")
        assert "recorded no rollouts" in page.locator("main").inner_text()


def test_a_slider_can_be_dragged(opened, report):
    with opened(report, "#view=group&step=1&group=0") as page:
        box = page.locator("#what-gamma").bounding_box()
        middle = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + 0.9 * box["width"], middle)
        page.mouse.down()
        for share in (0.8, 0.6, 0.4, 0.2):
            page.mouse.move(box["x"] + share * box["width"], middle)
            page.wait_for_timeout(60)
        page.mouse.up()
        page.wait_for_timeout(100)
        assert float(page.locator("#what-gamma").input_value()) < 0.35
        assert float(re.search(r"g=([\d.]+)", page.url)[1]) < 0.35
        assert page.locator("#flips").inner_text()
        assert page.locator("#what-if").count() == 1
        assert page.locator(".top").count() == 1


def test_focus_and_scrolling_stay_where_they_were(opened, report):
    with opened(report, "#view=group&step=1&group=0", bypass_csp=True) as page:
        page.set_viewport_size({"width": 500, "height": 600})
        page.evaluate("document.querySelector('.scroll').scrollLeft = 120")
        page.get_by_label("normalize_over").focus()
        page.get_by_label("normalize_over").select_option("same_turn")
        page.wait_for_selector("#flips:not(:empty)")
        assert page.evaluate("document.activeElement.id") == "select-normalize_over"
        assert page.evaluate("document.querySelector('.scroll').scrollLeft") > 60


@pytest.mark.parametrize("algorithm", ["grpo", "gtpo"])
def test_what_was_recorded_is_shown_until_something_is_changed(opened, tmp_path, algorithm):
    run = made_up_run(tmp_path / "run", steps=1, groups=1)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("algorithm: gtpo", f"algorithm: {algorithm}"))
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        row["turns"][0] |= {"reward": 0.123, "return": 0.456, "advantage": 7.89}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page([run], tmp_path / "page.html")
    with opened(tmp_path / "page.html", "#view=group") as page:
        first = page.locator("#group tr:nth-child(2) td").first
        assert first.inner_text().startswith(["+7.89", "R", "0.46", "r", "0.12"][0])
        assert "reward 0.123" in first.get_attribute("title")
        assert "return 0.456" in first.get_attribute("title")
        assert ("as recorded, by grpo" in page.locator("#what-if").inner_text()) == (algorithm == "grpo")


def test_rollouts_left_out_of_the_credit_are_left_out_here_too(opened, tmp_path):
    run = made_up_run(tmp_path / "run", steps=1, groups=1, group_size=6)
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[2]["masked"] = True
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page([run], tmp_path / "page.html")
    with opened(tmp_path / "page.html", "#view=group&g=0.5") as page:
        kept = [row for row in rows if not row["masked"]]
        assert f"{sum(row['passed'] for row in kept)} of 5 passed" in page.locator(".problem").inner_text()
        shown = page.locator("#group td:nth-child(4) .advantage").all_inner_texts()
        assert set(shown) == {"0.00"}


def test_characters_beyond_the_basic_plane_are_cut_where_their_tokens_are(opened, tmp_path):
    run = made_up_run(tmp_path / "run", steps=1, groups=1)
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    text = "So \U0001f600\U0001f600\U0001f600 the end XYZ"
    rows[0]["turns"] = [{**rows[0]["turns"][0], "text": text, "token_chars": [1] * len(text), "logprobs": None}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page([run], tmp_path / "page.html")
    with opened(tmp_path / "page.html", "#view=rollout&rollout=0") as page:
        assert page.locator(".message.model .text").first.text_content().rstrip("⏎") == text


def test_runs_in_folders_of_one_name_can_be_told_apart(opened, tmp_path):
    for parent in ("x", "y"):
        made_up_run(tmp_path / parent / "gtpo", steps=2)
    write_page([tmp_path / "x" / "gtpo", tmp_path / "y" / "gtpo"], tmp_path / "page.html")
    with opened(tmp_path / "page.html") as page:
        assert page.locator('[data-chart="pass_rate"] .reading').inner_text().split() == ["x/gtpo", "y/gtpo"]


def test_what_cannot_be_shown_says_so(opened, tmp_path):
    run = made_up_run(tmp_path / "run", steps=2)
    (run / "rollouts" / "step_000002.jsonl").write_text("")
    write_page([run], tmp_path / "page.html")
    with opened(tmp_path / "page.html", "#view=group&step=2") as page:
        assert "can't be shown" in page.locator("#error").inner_text()
        page.keyboard.press("1")
        view(page, "overview")
