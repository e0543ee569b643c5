"""Claim: the report of a run of 2,000 steps opens in less than two seconds, one of 100,000 too.

    python benchmarks/report.py          into results/report.json: a minute
    python benchmarks/report.py --docs   the table of docs/report.md

Runs are made on the spot (``tests/report/runs.py``): 24 layers, two evaluation sets, samples.
Opening is from the start of the navigation to the last of the charts, in a headless Chromium of the
system with an empty cache; the median of five, with least and most.

Not here: a page over a network, of which there is none.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import step

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from counterpoint.report.run_report import report_html  # noqa: E402
from counterpoint.runlog import read_run  # noqa: E402
from tests.report.runs import write_run  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "report.json"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TIMES, GOAL = 5, 2.0
RUNS: dict[str, dict[str, int]] = {
    "2,000 steps, every tenth logged": {"steps": 2000, "every": 10, "looks": 20},
    "2,000 steps, every one logged": {"steps": 2000, "every": 1, "looks": 100},
    "100,000 steps, every tenth logged": {"steps": 100_000, "every": 10, "looks": 200},
}


def opening(browser: Any, path: Path) -> tuple[float, float]:
    """Seconds until everything is drawn, and those of them that the page itself computed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    tools = context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-drawn]", timeout=120_000)
    took = float(page.get_attribute("html", "data-drawn")) / 1000
    metrics = tools.send("Performance.getMetrics")["metrics"]
    busy = next(one["value"] for one in metrics if one["name"] == "TaskDuration")
    context.close()
    return took, busy


def measure() -> list[dict[str, Any]]:
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is installed")
    rows = []
    with (
        sync_playwright() as driver,
        driver.chromium.launch(executable_path=path, args=["--no-sandbox"]) as browser,
        tempfile.TemporaryDirectory() as folder,
    ):
        for number, (name, options) in enumerate(RUNS.items()):
            run = write_run(Path(folder) / str(number), **options)
            start = time.perf_counter()
            html = report_html(read_run(run))
            made = time.perf_counter() - start
            page = Path(folder) / f"{number}.html"
            page.write_text(html, encoding="utf-8")
            pairs = [opening(browser, page) for _ in range(TIMES)]
            opened, busy = map(list, zip(*pairs, strict=True))
            size = len(html.encode())
            row = {"run": name, "made": made, "bytes": size, "opened": opened, "busy": busy}
            rows.append(row)
            print(f"{name}: {statistics.median(opened):.2f} s, {size / 1e6:.2f} MB")
    return rows


def table(results: dict[str, Any]) -> str:
    """The rows of docs/report.md."""
    lines = [
        "| run | opens in, median (least to most) | of it computing | made in | size |",
        "|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        opened = row["opened"]
        lines.append(
            f"| {row['run']} | {statistics.median(opened):.2f} s "
            f"({min(opened):.2f} to {max(opened):.2f}) | {statistics.median(row['busy']):.2f} s "
            f"| {row['made']:.1f} s | {row['bytes'] / 1e6:.2f} MB |"
        )
    load = results["machine"]["load_average_1min"]
    goal = (
        f"Goal: less than {GOAL:g} seconds. {results['browser']}, {results['machine']['cores']} "
        f"cores, which had {load:.1f} processes to run. `python benchmarks/report.py`"
    )
    return "\n".join([*lines, "", goal])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", action="store_true")
    if parser.parse_args().docs:
        results = json.loads(RESULTS.read_text(encoding="utf-8"))
        step.put_between(ROOT / "docs" / "report.md", "report", table(results))
        return
    machine = step.machine()
    results = {
        "rows": measure(),
        "browser": "headless Chromium",
        "machine": machine,
    }
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
