#!/usr/bin/env python3
"""Looks at the agent's page in Chromium. Status 0: all is well.

check.py URL SERVICE ENDPOINT POD [TILE=FIGURES]... [FOLDER for screenshots]
"""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time

PATIENCE = 60
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --disable-dev-shm-usage --hide-scrollbars --remote-debugging-pipe""".split()


class Browser:
    """A tab, driven by the DevTools protocol over a pipe: JSON messages, each ended by a zero byte."""

    def __init__(self, program, profile):
        to_read, self.to = os.pipe()
        self.come, from_write = os.pipe()

        def descriptors():
            read, write = os.dup(to_read), os.dup(from_write)
            os.dup2(read, 3)
            os.dup2(write, 4)

        command = [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, preexec_fn=descriptors, close_fds=False, start_new_session=True, **quiet)
        os.close(to_read)
        os.close(from_write)
        self.rest, self.id, self.session, self.events = b"", 0, None, []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.ask(f"{domain}.enable")

    def message(self, until):
        while b"\0" not in self.rest:
            if not select.select([self.come], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError("Chromium does not answer")
            more = os.read(self.come, 1 << 16)
            if not more:
                raise ConnectionError("Chromium ended")
            self.rest += more
        text, self.rest = self.rest.split(b"\0", 1)
        return json.loads(text)

    def ask(self, method, **params):
        self.id += 1
        question = {"id": self.id, "method": method, "params": params}
        if self.session:
            question["sessionId"] = self.session
        os.write(self.to, json.dumps(question).encode() + b"\0")
        until = time.monotonic() + PATIENCE
        while (message := self.message(until)).get("id") != self.id:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def run(self, script):
        result = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{script}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, script, what):
        until = time.monotonic() + PATIENCE
        while not self.run(script):
            if time.monotonic() > until:
                raise AssertionError(f"{what}; the page says: {str(self.run('document.body?.innerText'))[:2000]}")
            time.sleep(0.2)

    def look(self, width, height, scheme):
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def shoot(self, path):
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    def end(self):
        try:
            self.session = None
            self.ask("Browser.close")
            self.process.wait(10)
        except Exception:
            self.process.kill()
            self.process.wait()


CONTRAST = """(() => {
  const light = colour => { const [r, g, b] = colour.match(/[\\d.]+/g).map(it => it / 255)
    .map(it => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const style = getComputedStyle(document.body), back = light(style.backgroundColor), text = light(style.color);
  return [back, (Math.max(back, text) + 0.05) / (Math.min(back, text) + 0.05)];
})()"""


TILE = """[...([...document.querySelectorAll('#tiles div')].find(it => it.firstChild.textContent === {})?.lastChild.children ?? [])]
  .map(it => it.textContent).join(' ') === {}"""


def check(browser, url, service, endpoint, pod, tiles, folder):
    browser.look(1280, 900, "light")
    refused = browser.ask("Page.navigate", url=url).get("errorText")
    assert not refused, f"it cannot be opened: {refused}"
    # Until it is loaded it may have no body yet.
    browser.wait("location.href !== 'about:blank' && document.readyState === 'complete'", "it is never loaded")
    shown = f"document.body.innerText.includes({json.dumps(service)})"
    browser.wait(shown, f"the Service {service} does not appear")

    browser.wait("document.querySelector('#tiles dd').textContent !== '–'", "no rate appears: nothing comes after the first reading")

    for name, figures in tiles:
        browser.wait(TILE.format(json.dumps(name), json.dumps(figures)), f"the tile {name} does not show {figures}")

    # By its address or its pod's name the endpoint is found, however many there are and whatever was opened.
    row = f"[...document.querySelectorAll('tr')].find(row => row.cells[0].firstElementChild?.textContent === {json.dumps(endpoint)})"
    for name in [pod, endpoint]:
        browser.run(f"(it => {{ it.value = {json.dumps(name)}; it.dispatchEvent(new Event('input')); }})(document.querySelector('#filter'))")
        browser.wait(f"Boolean({row})", f"the endpoint {endpoint} does not appear by {name}")
    browser.wait(f"{row}.cells[0].textContent.includes({json.dumps(pod)})", f"the endpoint {endpoint} is shown without its pod {pod}")
    browser.wait(f"/\\d %/.test({row}.textContent)", f"the endpoint {endpoint} has no share")
    browser.wait(shown, f"the Service {service} is not shown with its endpoint {endpoint}")
    browser.run("(it => { it.value = ''; it.dispatchEvent(new Event('input')); })(document.querySelector('#filter'))")

    backs = {}
    for scheme in ["light", "dark"]:
        for width in [1280, 375]:
            browser.look(width, 900, scheme)
            wide = browser.run("document.documentElement.scrollWidth")
            assert wide <= width, f"the page scrolls sideways: {wide} px in a window of {width} px"
            if folder:
                browser.shoot(os.path.join(folder, f"{scheme}-{width}.png"))
        backs[scheme], contrast = browser.run(CONTRAST)
        assert contrast >= 4.5, f"{scheme}: the contrast of text is {contrast:.1f}"
    assert backs["dark"] < 0.1 < 0.7 < backs["light"], f"the same background in light and dark: {backs}"

    origin = browser.run("location.origin")
    for event in browser.events:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            asked = params["request"]["url"]
            assert asked.startswith((origin + "/", "data:", "about:")), f"the page asks others: {asked}"
        assert method != "Runtime.exceptionThrown", f"an error in the page: {params['exceptionDetails']}"
        if method == "Log.entryAdded" and params["entry"]["level"] == "error" and "favicon" not in json.dumps(params):
            raise AssertionError(f"an error in the page: {params['entry']['text']}")


def main():
    if len(sys.argv) < 5:
        sys.exit(__doc__)
    tiles = [argument.split("=", 1) for argument in sys.argv[5:] if "=" in argument]
    folder = next((argument for argument in sys.argv[5:] if "=" not in argument), None)
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not program:
        print("no Chromium here; on Debian: apt-get install chromium", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(program, profile)
        try:
            check(browser, *sys.argv[1:5], tiles, folder)
        except (AssertionError, RuntimeError, OSError) as error:
            print(f"the page at {sys.argv[1]}: {error}", file=sys.stderr)
            return 1
        finally:
            browser.end()
    print("the page shows what it should")
    return 0


if __name__ == "__main__":
    sys.exit(main())
