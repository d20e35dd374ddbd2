"""A headless Chromium over its DevTools protocol: what a person would see, without a driver to install."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
import pytest

from tests.plugins.server import wait_until
from tests.support import ON_DEBIAN

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEADLINE = 60.0
"""Seconds that the browser gets to start or to answer."""

_FLAGS = (
    "--headless=new",
    "--no-sandbox",  # refused to root with it; it visits nothing but our own page
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


class Browser:
    """One tab. Methods block until the browser has done it."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("chromium")
        assert program is not None, "chromium is missing: scripts/install-chromium"
        self._process = subprocess.Popen(
            [program, *_FLAGS, f"--user-data-dir={folder}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        port = folder / "DevToolsActivePort"

        def listening() -> bool:
            assert self._process.poll() is None, "chromium has ended"
            return port.exists() and len(port.read_text().split()) > 1

        wait_until(listening, "chromium listens", DEADLINE)
        self._origin = f"http://127.0.0.1:{port.read_text().split()[0]}"
        self._loop = asyncio.new_event_loop()
        self._number = 0
        self.complaints: list[str] = []
        """What the page's console and the browser had to say: errors, and what its policy forbids."""
        self._session, self._socket = self._loop.run_until_complete(self._attach())
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")

    def open(self, url: str) -> None:
        """Load a page."""
        self._ask("Page.navigate", url=url)
        wait_until(lambda: self.evaluate("document.readyState === 'complete'"), f"{url} is there", DEADLINE)

    def look(self, width: int, height: int, scheme: Literal["light", "dark"]) -> None:
        """Be a window of this size, on a machine set to this colour scheme."""
        self._ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self._ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def evaluate(self, expression: str) -> Any:
        """Return what a JavaScript expression gives on the page."""
        done = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in done, done
        return done["result"].get("value")

    def text(self) -> str:
        """All that can be read on the page."""
        return str(self.evaluate("document.body.innerText"))

    def wait_text(self, *texts: str, without: str | None = None) -> None:
        """Return when the page shows all of these, and ``without`` no more."""

        def shown() -> bool:
            text = self.text()
            return all(one in text for one in texts) and (without is None or without not in text)

        wait_until(shown, f"the page shows {texts}, not {without}", DEADLINE)

    def screenshot(self, path: Path) -> None:
        """Save the whole page as PNG."""
        done = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(done["data"]))

    def close(self) -> None:
        """End it."""
        self._loop.run_until_complete(self._session.close())
        self._loop.close()
        self._process.terminate()
        self._process.wait(DEADLINE)

    async def _attach(self) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
        session = aiohttp.ClientSession()
        async with session.get(f"{self._origin}/json") as answer:
            [tab] = [one for one in await answer.json() if one["type"] == "page"]
        return session, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)

    def _ask(self, method: str, **parameters: object) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, parameters), DEADLINE))

    async def _call(self, method: str, parameters: dict[str, object]) -> Any:
        self._number += 1
        await self._socket.send_str(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            if message.get("method") == "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
            elif message.get("method") == "Runtime.exceptionThrown":
                self.complaints.append(str(message["params"]))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """One headless Chromium with a profile of its own."""
    if shutil.which("chromium") is None and not ON_DEBIAN:
        pytest.skip("chromium is missing: scripts/install-chromium says why")
    one = Browser(tmp_path / "chromium")
    yield one
    one.close()
