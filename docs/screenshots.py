"""The picture of a report in README: `python -m docs.screenshots RUN_DIR` writes docs/report.jpg.

RUN_DIR is a finished run, such as the quickstart's. It takes `pip install -e '.[browser]'` and a Chromium or Chrome.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright import sync_api

from reft_jax.report.__main__ import main as report

OUT = Path(__file__).parent / "report.jpg"


def main(run_dir: str) -> None:
    """Writes the report to a folder of its own, opens it from there, and takes its first screen."""
    with tempfile.TemporaryDirectory() as folder, sync_api.sync_playwright() as playwright:
        page = Path(folder) / "report.html"
        if report([run_dir, "--out", str(page)]):
            sys.exit(1)
        found = filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome")))
        with playwright.chromium.launch(executable_path=next(found, None), args=["--no-sandbox"]) as browser:
            view = browser.new_page(viewport={"width": 1280, "height": 1160}, color_scheme="light")
            view.goto(page.as_uri(), wait_until="load")
            view.screenshot(path=OUT, type="jpeg", quality=80)
    print(OUT)


if __name__ == "__main__":
    main(sys.argv[1])
