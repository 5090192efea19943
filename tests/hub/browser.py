"""A headless chromium, driven over the DevTools protocol through a pair of pipes."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager

EXECUTABLE = shutil.which("chromium") or shutil.which("google-chrome")


class Browser:
    """One page. `evaluate` runs JavaScript and returns its value."""

    def __init__(self, write, read):
        self._write, self._read = write, read
        self._ids = itertools.count(1)
        self._session = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")

    def _call(self, method, **params):
        message = {"id": next(self._ids), "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:  # events come in between
            answer = json.loads(self._next_message())
            if answer.get("id") == message["id"]:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next_message(self):
        """Messages end with a zero byte; one is answered before the next is sent."""
        data = b""
        while not data.endswith(b"\0"):
            chunk = os.read(self._read, 1)
            if not chunk:
                raise RuntimeError("the browser has ended")
            data += chunk
        return data[:-1]

    def open(self, url, width, height=900):
        self._call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        self._call("Page.navigate", url=url)

    def evaluate(self, expression):
        done = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"])
        return done["result"].get("value")

    def wait_for(self, expression, seconds=60):
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.evaluate(f"Boolean({expression})"):
                return
            time.sleep(0.2)
        raise TimeoutError(f"{expression} is not true after {seconds} s")

    def type(self, selector, text):
        self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        self._call("Input.insertText", text=text)

    def screenshot(self, path):
        """The whole page."""
        image = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(image["data"]))


@contextmanager
def browser(profile):
    """A `Browser` whose profile is the folder `profile`; ended afterwards."""
    browser_reads, we_write = os.pipe()
    we_read, browser_writes = os.pipe()

    def as_3_and_4():
        os.dup2(browser_reads, 13)
        os.dup2(browser_writes, 14)
        os.dup2(13, 3)
        os.dup2(14, 4)

    process = subprocess.Popen(
        [
            *(EXECUTABLE, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"),
            *("--no-first-run", "--disable-background-networking", f"--user-data-dir={profile}"),
        ],
        preexec_fn=as_3_and_4,
        close_fds=False,
        stderr=subprocess.DEVNULL,
    )
    os.close(browser_reads)
    os.close(browser_writes)
    try:
        yield Browser(we_write, we_read)
    finally:
        process.terminate()
        process.wait()
        os.close(we_write)
        os.close(we_read)
