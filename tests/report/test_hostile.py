"""What a model writes is data: nothing of it becomes markup or runs."""

from __future__ import annotations

import json

import pytest
from recorded import unpacked

from gtpo.report import load, write_page
from gtpo.testing import made_up_run

HOSTILE = {
    "markup": "<img src=x onerror=\"document.title='owned'\"><b id=injected>bold</b>",
    "script": "<script>document.title='owned'</script>",
    "end of script": "</script><script>document.title='owned'</script><!--",
    "comment": "<!--<script>",
    "control": "a\x00b\x07c\x1b[31m\x85\u202egnp.exe",
    "surrogate": "half \ud83d of a pair, \udc00 and back",
    "separators": "one\u2028two\u2029three",
    "address": "javascript:document.title='owned'",
    "template": "${document.title='owned'} {{7*7}} %DATA% /*DATA*/ /*SCRIPT*/",
    "long line": "x" * 1_000_000,
}


@pytest.fixture(scope="module")
def hostile_run(tmp_path_factory):
    """A run in which every text is hostile in every field."""
    run = made_up_run(tmp_path_factory.mktemp("hostile") / "run", steps=1, groups=1, group_size=len(HOSTILE), turns=1)
    path = unpacked(run, 1)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, text in zip(rows, HOSTILE.values(), strict=True):
        turn = row["turns"][0]
        row |= {"question": text, "answer": text[:50], "verdict": text[:50], "extracted": text[:50]}
        row |= {"problem_id": text[:50], "stop_reason": "answer"}
        turn |= {"text": text, "token_chars": None, "observation": text, "statuses": ["ok"]}
        turn["calls"] = [{"code": text}, {"invalid": text[:50]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_page([run], run / "report.html")
    return run


@pytest.mark.parametrize("kind", HOSTILE)
def test_it_is_shown_as_text_and_runs_nothing(opened, hostile_run, kind):
    place = list(HOSTILE).index(kind)
    with opened(hostile_run / "report.html", f"#view=rollout&rollout={place}", bypass_csp=True) as page:
        assert page.title() == "gtpo report"
        assert page.locator("#injected, main img, main script").count() == 0
        text = page.locator(".message.model .text").first.text_content()
        if kind in ("control", "surrogate"):
            assert "\x1b" not in text
            assert text[0] == HOSTILE[kind][0]
        else:
            assert text.rstrip("⏎") == HOSTILE[kind]
        page.keyboard.press("2")
        page.wait_for_selector("#app[data-view=group]")
        page.keyboard.press("4")
        page.wait_for_selector("#app[data-view=find]")
        assert page.locator("#injected, main img, main script").count() == 0
        assert page.title() == "gtpo report"


def test_control_characters_are_made_visible(opened, hostile_run):
    with opened(hostile_run / "report.html", f"#view=rollout&rollout={list(HOSTILE).index('control')}") as page:
        text = page.locator(".message.model .text").first.text_content()
    assert "a␀b␇c␛[31m\\u0085\\u202egnp.exe" in text


def test_the_file_holds_no_markup_of_the_model_and_allows_its_own_script_only(hostile_run):
    text = (hostile_run / "report.html").read_text()
    data = text.split('id="data">')[1].split("</script>")[0]
    assert json.loads(data)["runs"][0]["index"]["problems"][0] == HOSTILE["markup"][:50]
    assert not set("<>&") & set(data)
    assert data.isascii()
    assert text.count("<script") == 2
    assert "script-src 'sha256-" in text
    assert "unsafe-eval" not in text


def test_frames_take_it_too(hostile_run):
    turns = load(hostile_run).turns
    expected = {**HOSTILE, "surrogate": "half \ufffd of a pair, \ufffd and back"}
    assert list(turns["text"]) == list(expected.values())
