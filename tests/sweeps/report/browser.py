"""Runs a page, or a script alone, in headless Chromium and hands back what JavaScript found, as data."""

import html
import json
import re
import shutil
import subprocess
import tempfile

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
NODE = shutil.which("node")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1300,1000",
    "--hide-scrollbars", "--virtual-time-budget=20000", "--dump-dom",
)  # fmt: skip
_WATCH = """<script>
const wrong = [];
addEventListener("error", (event) => wrong.push(String(event.message)));
addEventListener("unhandledrejection", (event) => wrong.push(String(event.reason)));
addEventListener("securitypolicyviolation", (event) => wrong.push(`${event.violatedDirective}: ${event.blockedURI}`));
console.error = console.warn = (...said) => wrong.push(said.join(" "));
</script>"""


def in_page(page, body, *, width=1100, dark=False):
    """What the JavaScript function body `body`, which may await, returns in the HTML text `page`, and what went wrong.

    The page is `width` pixels wide (Chromium's own windows aren't narrower than 500) and 900 high.
    """
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed, so that no page can be opened")
    asked = f"""<script>addEventListener("load", async () => {{
        let found;
        try {{ found = await (async () => {{ {body} }})(); }} catch (error) {{ wrong.push(String(error.stack)); }}
        parent.document.getElementById("found").textContent = JSON.stringify([found ?? null, wrong]);
    }});</script>"""
    inner = page.replace("<head>", f"<head>{_WATCH}", 1).replace("</body>", f"{asked}</body>", 1)
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(inner)}"></iframe>'
    found, wrong = json.loads(_dumped(f'<!doctype html><pre id="found"></pre>{frame}', dark=dark))
    return found, wrong


def in_javascript(script):
    """What the JavaScript expression at the end of `script` is, by Chromium or else by node."""
    body, _, expression = script.rstrip().rpartition("\n")
    if CHROMIUM is not None:
        return json.loads(
            _dumped(
                f'<!doctype html><pre id="found"></pre><script>{body}\n'
                f"found.textContent = JSON.stringify({expression});</script>"
            )
        )
    if NODE is None:
        pytest.skip("neither Chromium nor node is installed, so that no JavaScript can be run")
    said = subprocess.run(
        [NODE, "-"], input=f"{body}\nconsole.log(JSON.stringify({expression}));",
        capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    return json.loads(said.stdout)


def _dumped(page, *, dark=False):
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/page.html"
        with open(path, "w", encoding="utf-8") as file:
            file.write(page)
        look = ["--blink-settings=preferredColorScheme=0"] if dark else []
        said = subprocess.run(
            [CHROMIUM, *_FLAGS, *look, f"--user-data-dir={folder}/profile", f"file://{path}"],
            capture_output=True, text=True, check=True, timeout=120,
        ).stdout  # fmt: skip
    return html.unescape(re.search(r'<pre id="found">(.*?)</pre>', said, re.DOTALL).group(1))
