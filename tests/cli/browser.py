"""A headless chromium, driven over DevTools' pipe: https://chromedevtools.github.io/devtools-protocol"""

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from conftest import ROOT

CHROMIUM = Path(os.environ.get("RRPC_CHROMIUM") or ROOT / "third_party/chromium/run")
TIMEOUT = 60
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "Tab": 9}


class Browser:
    """One page. What it asked the network for, and what went wrong in it, is noted."""

    def __init__(self):
        assert CHROMIUM.is_file(), f"{CHROMIUM} is missing: run scripts/fetch-chromium"
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()

        def pipes():
            # Away from 3 and 4 first: each may be the other's.
            source, target = os.dup(theirs_in), os.dup(theirs_out)
            while source < 5:
                source = os.dup(source)
            while target < 5:
                target = os.dup(target)
            os.dup2(source, 3)
            os.dup2(target, 4)

        self.process = subprocess.Popen(
            [
                CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                "--no-first-run", f"--user-data-dir={self.profile.name}", "--remote-debugging-pipe",
            ],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            preexec_fn=pipes, close_fds=False, start_new_session=True,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest = b""
        self.count = 0
        self.session = None
        self.requests = []
        self.errors = []
        self.loads = 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def close(self):
        os.close(self.to)
        os.close(self.back)
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(TIMEOUT)
        self.profile.cleanup()

    def call(self, method, **params):
        """A command's result."""
        self.count += 1
        message = {"id": self.count, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.message()
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def message(self):
        """The next message; an event is noted."""
        deadline = time.monotonic() + TIMEOUT
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0, deadline - time.monotonic()))
            assert ready, "the browser says nothing"
            part = os.read(self.back, 1 << 16)
            assert part, "the browser is gone"
            self.rest += part
        message, self.rest = self.rest.split(b"\0", 1)
        message = json.loads(message)
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Runtime.exceptionThrown" | "Log.entryAdded":
                self.errors.append(message["params"])
            case "Page.loadEventFired":
                self.loads += 1
        return message

    def open(self, address):
        # By way of an empty page, or an address that differs behind # alone would load nothing.
        for url in ["about:blank", address]:
            before = self.loads
            self.requests.clear()
            self.call("Page.navigate", url=url)
            while self.loads == before:
                self.message()

    def evaluate(self, expression):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        """A key goes down and up, wherever the focus is."""
        common = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def click(self, selector):
        """The mouse clicks the middle of an element."""
        x, y = self.evaluate(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            "const r = e.getClientRects()[0]; return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ["mousePressed", "mouseReleased"]:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
