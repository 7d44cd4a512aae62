"""How large a report is, and how fast it opens and responds in a real browser.

    python benchmarks/report.py [--steps 100] [--rollouts 64] [--turns 4] [--rounds 5]

The run is made up: its rollouts have about 400 characters of text per turn, recorded token by token. Opening is the
time from the start of the navigation until the page is drawn. Answering is the time from setting a slider until the
group is drawn again, as the median of all rounds. The time that recording adds to a real step is the metric
time/record_s. Needs Chromium and Playwright.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import sync_playwright

from gtpo.report import write_page
from gtpo.testing import made_up_run

CODE = "".join(f"value_{i} = {{i}} * {i} + 1  # step {i} of the computation\n" for i in range(8)) + "print(value_7)\n"
ANSWER = """(value) => {
  const slider = document.getElementById("what-gamma");
  const app = document.getElementById("app");
  const before = app.dataset.ready;
  const start = performance.now();
  slider.value = value;
  slider.dispatchEvent(new Event("input"));
  return new Promise((done) => {
    const drawn = () => requestAnimationFrame(() => done(performance.now() - start));
    const check = () => (app.dataset.ready === before ? setTimeout(check) : drawn());
    check();
  });
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rollouts", type=int, default=64)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            "steps": args.steps,
            "groups": args.rollouts // 8,
            "group_size": 8,
            "turns": args.turns,
            "fewest_turns": args.turns,
        }
        run = made_up_run(Path(folder) / "run", **sizes, text=CODE)
        recorded = sum(path.stat().st_size for path in (run / "rollouts").iterdir())
        start = time.perf_counter()
        size = write_page([run], run / "report.html")
        written_s = time.perf_counter() - start
        opening, answering = in_browser(run / "report.html", args.rounds)
    print(f"{args.steps} steps x {args.rollouts} rollouts x {args.turns} turns")
    print(f"recorded {recorded / 1e6:.1f} MB; the page has {size / 1e6:.1f} MB and was written in {written_s:.1f} s")
    print(f"opens in {statistics.median(opening):.2f} s ({min(opening):.2f} to {max(opening):.2f})")
    print(f"a control answers in {statistics.median(answering):.0f} ms ({min(answering):.0f} to {max(answering):.0f})")


def in_browser(path: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to open, and milliseconds to answer."""
    opening, answering = [], []
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(rounds):
            context = browser.new_context(viewport={"width": 1280, "height": 800}, bypass_csp=True)
            page = context.new_page()
            start = time.perf_counter()
            page.goto(f"file://{path}#view=group")
            page.wait_for_selector("#app[data-ready]")
            opening.append(time.perf_counter() - start)
            answering += [page.evaluate(ANSWER, value) for value in (0.5, 0.2, 1.0)]
            context.close()
        browser.close()
    return opening, answering


if __name__ == "__main__":
    main()
