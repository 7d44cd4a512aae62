"""A run watched while it trains."""

from __future__ import annotations

import http.client
import json

import pytest
from serving import serving

from gtpo.errors import ConfigError
from gtpo.report import serve
from gtpo.testing import made_up_run


@pytest.fixture
def live(tmp_path):
    run = made_up_run(tmp_path / "run", steps=2)
    with serving(serve([run])) as server:
        yield run, server.server_address


def get(address, path, host=None):
    connection = http.client.HTTPConnection(*address, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_it_listens_on_the_loopback_address_and_answers_no_other_name(live):
    _, address = live
    assert address[0] == "127.0.0.1"
    assert get(address, "/")[0] == 200
    assert get(address, "/", host="localhost:80")[0] == 200
    assert get(address, "/", host="evil.example")[0] == 403


@pytest.mark.parametrize(
    "path", ["/nothing", "/step", "/step?run=9&step=1", "/step?run=0&step=99", "/step?run=a&step=b", "/../x"]
)
def test_what_is_not_there_is_not_found(live, path):
    assert get(live[1], path)[0] == 404


def test_a_taken_port_is_named(live):
    with pytest.raises(ConfigError, match=f"port {live[1][1]}"):
        serve([live[0]], live[1][1])


def test_the_page_follows_the_run(opened, live):
    run, (host, port) = live
    with opened(f"http://{host}:{port}/", "#view=group") as page:
        page.wait_for_selector("#app[data-view=group]")
        assert page.get_by_label("step").locator("option").all_inner_texts() == ["1", "2"]
        made_up_run(run, steps=3)
        page.wait_for_selector("option:has-text('3')", state="attached", timeout=15_000)
        page.get_by_label("step").select_option("3")
        page.wait_for_selector("text=What is 3 + 0?")


def test_a_run_that_was_overwritten_is_news(opened, live):
    run, (host, port) = live
    with opened(f"http://{host}:{port}/", "#view=rollout&step=1&rollout=0") as page:
        before = page.locator("main").inner_text()
        made_up_run(run, steps=2, seed=9)
        page.wait_for_selector(f"#app:not([data-ready='{page.get_attribute('#app', 'data-ready')}'])", timeout=15_000)
        assert page.locator("main").inner_text() != before


def test_nothing_new_costs_nothing(live):
    status, body = get(live[1], "/runs")
    stamp = json.loads(body)[0]["stamp"]
    assert status == 200
    assert get(live[1], f"/runs?stamps={stamp}") == (204, b"")
