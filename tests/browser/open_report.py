"""Opens a report in headless Chromium: pictures load, nothing is fetched, nothing runs over the edge.

Run by `make test-browser`; with a folder as argument, screenshots are left in it. Needs Debian's package chromium, or
another Chromium named by the environment variable CHROMIUM.
"""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = (1280, 500)
CHECK = """
<script>
window.addEventListener("load", () => {
  const found = {
    pictures: [...document.images].map(image => [image.alt, image.naturalWidth]),
    fetched: performance.getEntriesByType("resource").map(each => each.name).filter(name => !name.startsWith("data:")),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    tables: [...document.querySelectorAll("table")].map(table => table.innerText),
    heading: document.querySelector("h1").innerText,
  };
  const at = document.createElement("pre");
  at.id = "found";
  at.textContent = btoa(unescape(encodeURIComponent(JSON.stringify(found))));
  document.body.appendChild(at);
});
</script>
"""


def browser() -> str:
    """Path of Chromium."""
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        sys.exit("there is no Chromium. Type: apt-get install chromium, or set CHROMIUM to its path.")
    return found


def opened(page: Path, width: int, *words: str) -> str:
    """What Chromium prints of a page; it can reach no other machine."""
    command = [
        browser(), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size={width},4200",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=10000", *words, page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        sys.exit(f"Chromium stopped with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def write_report(path: Path) -> None:
    """The report of a small model on simulated stays."""
    from gpmoe.early_warning import AlarmPolicy, StayModel, simulate_stays
    from gpmoe.estimators.early_warning_classifier import EarlyWarningClassifier
    from gpmoe.plotting.early_warning_report import report

    law = StayModel(prevalence=0.3, shift=0.8)
    train, test = (simulate_stays(n, model=law, seed=seed).series for seed, n in enumerate((150, 100)))
    model = EarlyWarningClassifier("tcn", hidden=16, n_blocks=3, max_epochs=8, random_state=0).fit(train)
    report(model, test, path, policy=AlarmPolicy(0.3, latching=True), time_unit="hours", title="Simulated <stays>")


def check(page: Path, width: int) -> list[str]:
    """What is wrong with a page at a width."""
    text = opened(page, width, "--dump-dom")
    found = re.search(r'<pre id="found">([^<]*)</pre>', text)
    if found is None:
        return [f"width {width}: the page did not load"]
    seen = json.loads(base64.b64decode(found[1]))
    wrong = [f"width {width}: the picture {alt!r} did not load" for alt, size in seen["pictures"] if not size]
    wrong += [f"width {width}: {name} was fetched" for name in seen["fetched"]]
    wrong += [f"width {width}: {seen['overflow']} pixels run over the edge"] if seen["overflow"] > 0 else []
    wrong += ["there are not six pictures"] if len(seen["pictures"]) != 6 else []
    wrong += ["a table lacks the clock"] if not all("clock" in table for table in seen["tables"][:2]) else []
    wrong += [f"the heading is {seen['heading']!r}"] if seen["heading"] != "Simulated <stays>" else []
    return wrong


def main() -> None:
    """Write, open, check."""
    with tempfile.TemporaryDirectory() as folder:
        page, checked = Path(folder) / "report.html", Path(folder) / "checked.html"
        write_report(page)
        checked.write_text(page.read_text(encoding="utf-8").replace("</body>", CHECK + "</body>"), encoding="utf-8")
        wrong = [fault for width in WIDTHS for fault in check(checked, width)]
        if sys.argv[1:]:
            kept = Path(sys.argv[1]).resolve()
            shutil.copy(page, kept / "report.html")
            for width in WIDTHS:
                opened(page, width, f"--screenshot={kept / f'report-{width}.png'}")
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"the report opens at widths of {' and '.join(map(str, WIDTHS))}: pictures load, nothing is fetched")


if __name__ == "__main__":
    main()
