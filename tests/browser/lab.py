"""A notebook in a real JupyterLab and a real Chromium, driven by the labels that a person reads.

Nothing may leave the machine: every other request is refused, and remembered.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
)
_HERE = {"127.0.0.1", "localhost"}
_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {
        "checkForUpdates": False,
        "doNotDisturbMode": True,
        "fetchNews": "false",
    },
    "@jupyterlab/notebook-extension:tracker": {
        "windowingMode": "none"
    },  # cells off the screen stay in the page
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
_PANEL = "const panel = window.jupyterapp.shell.currentWidget;"
_CHART = """
    const chart = document.querySelector('.jp-NotebookPanel .js-plotly-plot');
    const trace = chart && chart._fullData && chart._fullData.find(t => t.name === name);
"""
_LAST_COLUMNS = """scrolled => {
    const above = e => e.parentElement ? [e.parentElement, ...above(e.parentElement)] : [];
    const across = e => getComputedStyle(e).overflowX;
    const tables = [...document.querySelectorAll('table')].filter(t => t.rows.length && t.offsetParent);
    return tables.map(table => {
        const last = table.rows[0].lastElementChild, box = above(table).find(e => ['auto', 'scroll'].includes(across(e)));
        if (box) box.scrollLeft = scrolled;
        const clips = above(table).filter(e => across(e) !== 'visible');
        const edge = Math.min(innerWidth, ...clips.map(e => e.getBoundingClientRect().left + e.clientLeft + e.clientWidth));
        const right = last.getBoundingClientRect().right;
        if (box) box.scrollLeft = 0;
        return right > edge + 1 ? `${last.textContent}: ${Math.round(right)} of ${Math.round(edge)}` : '';
    }).filter(Boolean);
}"""
_WAYS_OUT = """root => {
    const found = [...document.querySelectorAll(`${root} :is([href], [src], [action])`)];
    const place = e => new URL(e.getAttribute('href') || e.getAttribute('src') || e.getAttribute('action'), location.href);
    const leadsOut = u => /^(http|ws)/.test(u.protocol) && !['127.0.0.1', 'localhost'].includes(u.hostname);
    return found.map(place).filter(leadsOut).map(String);
}"""


@contextlib.contextmanager
def jupyter(root: Path, **environment: str) -> Iterator[str]:
    """A JupyterLab server on the loopback; gives its address with the token."""
    config = root / "config" / "labconfig"
    config.mkdir(parents=True)
    (config / "default_setting_overrides.json").write_text(json.dumps(_SETTINGS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    own = {f"JUPYTER_{n}_DIR": str(root / n.lower()) for n in ("RUNTIME", "DATA")} | {
        "JUPYTER_CONFIG_DIR": str(config.parent)
    }
    own |= {
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces"),
    }
    own |= {
        "IPYTHONDIR": str(root / "ipython"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "JUPYTER_PLATFORM_DIRS": "1",
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}",
        "--expose-app-in-browser",
        "--LabApp.extension_manager=readonly",
    ]
    with (root / "jupyter.log").open("wb") as log:
        server = subprocess.Popen(
            command, env=os.environ | own | environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _wait_for_server(port, token, server, root / "jupyter.log")
        yield f"http://127.0.0.1:{port}/lab/tree/{{}}?token={token}&reset"
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()


def _wait_for_server(port: int, token: str, server: subprocess.Popen, log: Path) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/status", headers={"Authorization": f"token {token}"}
    )
    for _ in range(400):
        assert server.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.1)
    raise AssertionError("jupyter did not start:\n" + log.read_text()[-3000:])


class Lab:
    """One page with one notebook. Methods wait for what they need, `seconds` at most."""

    def __init__(self, context: Any, address: str, seconds: float = 60):
        self.context, self.address, self.seconds = context, address, seconds
        self.page = context.pages[0] if context.pages else context.new_page()
        self.page.set_default_timeout(seconds * 1000)
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.errors.append(str(e)))
        self.page.add_init_script(
            "addEventListener('click', () => { window.lastClick = Date.now() / 1000 }, true)"
        )
        context.on(
            "request", lambda r: None if self._is_here(r.url) else self.outside.append(r.url)
        )
        context.route(lambda url: not self._is_here(url), lambda route: route.abort())

    @staticmethod
    def _is_here(url: str) -> bool:
        parts = urlparse(url)
        return parts.scheme not in {"http", "https", "ws", "wss"} or parts.hostname in _HERE

    def open(self, notebook: str) -> None:
        self.page.goto(self.address.format(notebook), wait_until="domcontentloaded")
        self._ready()

    def reload(self) -> None:
        self.page.reload(wait_until="domcontentloaded")
        self._ready()

    def _ready(self) -> None:
        self.page.wait_for_selector(".jp-NotebookPanel:visible .jp-Notebook")
        self.page.wait_for_function(
            "() => ['idle', "
            "'busy'].includes(window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status)"
        )

    def run_cell(self, number: int) -> None:
        """Run one cell, counted from 0, and wait until it is done."""
        self._panel(
            (
                "panel.content.activeCellIndex = number; await "
                "app.commands.execute('notebook:run-cell')"
            ),
            number,
        )

    def clear(self, number: int) -> None:
        """Clear a cell's output."""
        self._panel(
            (
                "panel.content.activeCellIndex = number; await "
                "app.commands.execute('notebook:clear-cell-output')"
            ),
            number,
        )

    def output(self, number: int) -> str:
        return (
            self.page.locator(".jp-NotebookPanel:visible .jp-Cell")
            .nth(number)
            .locator(".jp-OutputArea")
            .inner_text()
        )

    def restart_kernel(self) -> None:
        self._panel("await panel.sessionContext.session.kernel.restart()")
        self._ready()

    def save(self) -> None:
        self._panel("await panel.context.save()")

    def theme(self, name: str) -> None:
        self._panel("await app.commands.execute('apputils:change-theme', { theme: number })", name)

    def _panel(self, script: str, argument: Any = None) -> None:
        self.page.evaluate(
            f"async (number) => {{ const app = window.jupyterapp; {_PANEL} {script} }}", argument
        )

    # ---- widgets, by their labels

    def click(self, label: str) -> float:
        """When the click happened, in seconds since the epoch."""
        self.page.locator(
            f".jp-NotebookPanel:visible button.jupyter-button:visible:text-is({json.dumps(label)})"
        ).first.click()
        return self.page.evaluate("window.lastClick")

    def select(self, label: str, option: str) -> None:
        self._control(label, "select").select_option(label=option)

    def number(self, label: str, value: float) -> None:
        field = self._control(label, "input")
        field.fill(str(value))
        field.press("Enter")

    def value(self, label: str) -> float:
        return float(self._control(label, "input").input_value())

    def slide(self, label: str, value: int) -> None:
        """By the keyboard, into the number beside the slider."""
        self._control(label, ".widget-readout").click()
        self.page.keyboard.press("Control+A")
        self.page.keyboard.type(str(value))
        self.page.keyboard.press("Enter")

    def tab(self, title: str) -> None:
        self.page.locator(f".lm-TabBar-tabLabel:text-is({json.dumps(title)})").first.click()

    def show_tab(self, title: str) -> None:
        """Open a tab and scroll it to the top of the screen."""
        self.tab(title)
        self.page.locator(f".lm-TabBar-tabLabel:text-is({json.dumps(title)})").first.evaluate(
            "e => e.scrollIntoView()"
        )

    def is_off(self, label: str) -> bool:
        return self.page.locator(
            f".jp-NotebookPanel:visible button:text-is({json.dumps(label)})"
        ).first.is_disabled()

    def _control(self, label: str, inner: str) -> Any:
        text = f".widget-label:text-is({json.dumps(label)})"
        return self.page.locator(
            f".jp-NotebookPanel:visible .jupyter-widgets:has(> {text}) {inner}"
        ).first

    # ---- what is on the screen

    def wait_text(self, pattern: str) -> None:
        self.page.wait_for_function(
            f"p => {{ {_PANEL} return new RegExp(p).test(panel.node.innerText) }}", arg=pattern
        )

    def furniture(self) -> list[str]:
        """The texts of the first chart's annotations as they stand on the page, and one "band" for
        each band behind them.
        """
        script = """() => { const chart = document.querySelector('.jp-NotebookPanel .js-plotly-plot');
            const drawn = query => [...chart.querySelectorAll(query)];
            return [...drawn('.annotation-text').map(e => e.textContent), ...drawn('.shapelayer path').map(() => 'band')] }"""
        return self.page.evaluate(script)

    def wait_points(self, name: str, count: int) -> None:
        script = f"([name, n]) => {{ {_CHART} return trace && trace.y && trace.y.length >= n }}"
        self.page.wait_for_function(script, arg=[name, count])

    def trace(self, name: str) -> tuple[list[float], list[float]]:
        """x and y of a curve, as the browser has them."""
        script = (
            f"name => {{ {_CHART} return trace ? [Array.from(trace.x ?? []), "
            f"Array.from(trace.y ?? [])] : [[], []] }}"
        )
        return tuple(self.page.evaluate(script, name))

    def ways_out(self, root: str = ".jp-NotebookPanel") -> tuple[list[str], set[str]]:
        """Links, sources and actions below `root` that lead out, and the buttons of all mode bars.
        Each but the download is pressed; a page or a dialog that it opens is a way out, too.
        """
        links, opened, titles = self.page.evaluate(_WAYS_OUT, root), [], set()
        self.context.on("page", lambda page: opened.append(page.url))
        for chart in self.page.locator(f"{root} .js-plotly-plot").all():
            chart.hover(position={"x": 5, "y": 5}, force=True)
            for button in chart.locator(".modebar-btn").all():
                titles.add(title := button.get_attribute("data-title"))
                if title != "Download plot as a PNG":
                    button.evaluate("e => e.click()")
        dialogs = self.page.locator("[class*=cloud-dialog]").all_inner_texts()
        return [*links, *opened, *dialogs], titles

    def resize(self, width: int, height: int = 1000) -> None:
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.wait_for_timeout(200)  # the layout follows

    def beyond_the_edge(self) -> list[str]:
        """Last columns of tables that cannot be seen as they stand."""
        return self.page.evaluate(_LAST_COLUMNS, 0)

    def cut_off(self) -> list[str]:
        """Last columns that cannot be seen even when the box around the table is scrolled to its
        end.
        """
        return self.page.evaluate(_LAST_COLUMNS, 1e6)

    def shot(self, path: Path) -> None:
        self.page.screenshot(path=str(path))

    def assert_clean(self) -> None:
        """No cell failed, the browser's console is empty, and nothing asked for anything
        outside.
        """
        failed = self.page.locator(
            ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr']"
        )
        assert failed.count() == 0, failed.first.inner_text()
        assert (self.errors, self.outside) == ([], [])


@contextlib.contextmanager
def chromium(root: Path, address: str) -> Iterator[Lab]:
    """A page in a fresh profile. A failure leaves a screenshot in `root`."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(root / "profile"),
            executable_path=CHROMIUM,
            headless=True,
            args=_FLAGS,
            viewport={"width": 1280, "height": 1000},
        )
        lab = Lab(context, address)
        try:
            yield lab
        except BaseException:
            with contextlib.suppress(Exception):
                lab.shot(root / "failure.png")
            raise
        finally:
            context.close()
