"""Headless Chromium over its debugging pipe, for tests of web pages; without other packages."""

import json
import os
import shutil
import subprocess
import time
from contextlib import contextmanager


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")


class Browser:
    """A browser with one page.

    Attributes:
        problems: What the page reported: errors, violations of its policy, and requests.
    """

    def __init__(self, commands, answers):
        self._commands, self._answers = commands, answers
        self._session, self._number, self._loaded = {}, 0, False
        self.problems = []
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def __call__(self, method, **parameters):
        """Calls a method of the DevTools protocol, and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != self._number:
            pass
        assert "error" not in answer, answer["error"]
        return answer["result"]

    def open(self, file, width=1280, scheme="light"):
        """Opens a file or an address in a window of a width, for people who prefer a colour scheme."""
        self.problems.clear()
        self("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded = False
        self("Page.navigate", url=file if isinstance(file, str) else file.as_uri())
        while not self._loaded:
            self._read()

    def evaluate(self, expression):
        """The value of an expression of JavaScript."""
        result = self("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait_for(self, expression, value):
        """Waits until an expression has a value, and returns the one it has, after ten seconds whatever it is."""
        deadline = time.monotonic() + 10
        while (got := self.evaluate(expression)) != value and time.monotonic() < deadline:
            time.sleep(0.02)
        return got

    def press(self, key):
        """Presses a key."""
        codes = {
            "Enter": 13,
            "Escape": 27,
            "ArrowLeft": 37,
            "ArrowUp": 38,
            "ArrowRight": 39,
            "ArrowDown": 40,
            "Tab": 9,
        }
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], **text)

    def click(self, element, x, y):
        """Clicks an element, an expression of JavaScript, at a place in shares of its width and height."""
        frame = f"(({{ left, top, width, height }}) => [left + {x} * width, top + {y} * height])"
        self.evaluate(f"{element}.scrollIntoView({{ block: 'center' }})")
        x, y = self.evaluate(f"{frame}({element}.getBoundingClientRect())")
        for kind in ("mousePressed", "mouseReleased"):
            self("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def close(self):
        """Ends the browser."""
        self._session = {}
        self("Browser.close")

    def _read(self):
        data = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            data += byte
        message = json.loads(data)
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("file:", "data:")):
            self.problems.append(parameters["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"):
            self.problems.append(json.dumps(parameters))
        return message


@contextmanager
def browser(profile):
    """A browser with a new profile in a folder."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()

    def as_three_and_four():
        high = [os.dup(from_us), os.dup(to_us)]  # neither may be 3 or 4
        high = [os.dup(number) if number in (3, 4) else number for number in high]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    process = subprocess.Popen(
        [CHROMIUM, *_OPTIONS, f"--user-data-dir={profile}"],
        preexec_fn=as_three_and_four,
        close_fds=False,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    with process, os.fdopen(to_browser, "wb") as commands, os.fdopen(from_browser, "rb") as answers:
        running = Browser(commands, answers)
        try:
            yield running
        finally:
            running.close()
