"""
One small interface to Chromium, Firefox and WebKit, for what has to hold in every browser.

Each is driven by what Debian's package understands: Chromium by Playwright; Firefox by WebDriver BiDi, which it speaks
itself (Playwright's BiDi sends commands that the ESR does not know, and Selenium needs a geckodriver, which Debian does
not have); WebKitGTK by WebDriver, which is JSON over HTTP, on a screen of Xvfb.
"""

import base64
import json
import os
import shutil
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

from playwright.sync_api import BrowserContext, Error, sync_playwright
from websockets.sync.client import connect

from tests.demo_browser import CHROMIUM, FLAGS, MILLISECONDS
from tests.ports import free_port
from tests.processes import Process
from tests.waiting import PATIENCE, scaled, wait_for

WIDTH, HEIGHT = 1100, 750
"""Pixels of a new tab's viewport; WebKit's is lower by a few."""
START_SECONDS = 40.0
"""Firefox takes 2 of them by itself, and 15 beside others."""
SHOWN = """
const within = (root) =>
    [root, ...[...root.querySelectorAll("*")].flatMap(({ shadowRoot }) => (shadowRoot ? within(shadowRoot) : []))];
const shown = (css) =>
    within(document).flatMap((root) => [...root.querySelectorAll(css)]).filter((element) => element.checkVisibility());
"""
"""``shown(css)``: the elements that one can see, those of shadow roots too."""


class ScriptError(Exception):
    """A script failed, or the page that it ran on has gone."""


class Tab(ABC):
    """One tab of a browser, with cookies and storage of its own."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        """Errors and warnings of the console and of scripts; none in WebKit, whose driver does not tell them."""

    @abstractmethod
    def go(self, url: str) -> None:
        """Open a page, and return when it is loaded."""

    @abstractmethod
    def back(self) -> None:
        """Press the back button; the page may come a moment later."""

    @abstractmethod
    def resize(self, width: int) -> None:
        """Set the viewport's width in pixels."""

    @abstractmethod
    def switch_network(self, *, on: bool) -> bool:
        """Switch the browser's network; return False, and do nothing, where a browser has no switch."""

    @abstractmethod
    def save_screenshot(self, path: Path) -> None:
        """Write a PNG image of what one sees."""

    @abstractmethod
    def _evaluate(self, function: str, argument: str) -> str:
        """Call an async function of one text, and return the text it returns; raise ``ScriptError``."""

    @abstractmethod
    def _press(self, x: int, y: int) -> None:
        """Press and release the mouse at a point of the viewport."""

    def run(self, script: str, *arguments: Any) -> Any:
        """
        Run the body of an async function on the page, and return what it returns.

        Args:
            script: JavaScript; it can use ``shown(css)`` and ``given``, the list of the arguments.
            arguments: JSON, as is the result.

        Raises:
            ScriptError: If it fails, also because the page went away meanwhile.

        """
        function = f"async (json) => {{ {SHOWN} const given = JSON.parse(json); "
        function += f"return JSON.stringify((await (async () => {{ {script} }})()) ?? null); }}"
        return json.loads(self._evaluate(function, json.dumps(arguments)))

    def texts(self, css: str) -> list[str]:
        """Return the texts of the elements that one can see."""
        return list(self.run("return shown(given[0]).map((element) => element.textContent.trim());", css))

    def click(self, css: str) -> None:
        """Click in the middle of the one element that can be seen."""
        x, y = self.wait_until(
            """const [element, another] = shown(given[0]);
            if (!element || another) return null;
            element.scrollIntoView({ block: "nearest" });
            const { x, y, width, height } = element.getBoundingClientRect();
            return [x + width / 2, y + height / 2];""",
            css,
        )
        self._press(round(x), round(y))

    def wait_until(self, script: str, *arguments: Any, seconds: float = PATIENCE) -> Any:
        """Run a script until what it returns is true, over new pages too, and return that."""

        def look() -> Any:
            try:
                return self.run(script, *arguments)
            except ScriptError as error:
                failed.append(error)
                return None

        failed: list[ScriptError] = []
        try:
            return wait_for(look, seconds, script)
        except AssertionError as error:
            raise error from (failed[-1] if failed else None)

    def expect_texts(self, css: str, *texts: str, seconds: float = PATIENCE) -> None:
        """Wait until the elements that one can see have these texts, in this order, and nothing else."""
        script = "return JSON.stringify(shown(given[0]).map((each) => each.textContent.trim())) === given[1];"
        try:
            self.wait_until(script, css, json.dumps(texts, ensure_ascii=False, separators=(",", ":")), seconds=seconds)
        except AssertionError as error:
            raise AssertionError(f"{css}: {self.texts(css)} instead of {list(texts)}") from error


class Browser(ABC):
    """A running browser, which shares one process among its tests' tabs as far as it can."""

    name: str
    keeps_pages = True
    """Whether the back button brings back the page as it was, of a page that had a connection."""

    @classmethod
    @abstractmethod
    def missing(cls) -> str | None:
        """Return what is not on this machine, or None."""

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def tab(self) -> Any:
        """Return a context manager: a tab that knows nothing of the tabs before."""


# Chromium


class _ChromiumTab(Tab):
    def __init__(self, context: BrowserContext) -> None:
        super().__init__()
        self._context = context
        context.set_default_timeout(MILLISECONDS)
        context.on(
            "console",
            lambda line: (
                line.type in ("error", "warning") and self.complaints.append(f"{line.text} {line.location['url']}")
            ),
        )
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self._page = context.new_page()

    def go(self, url: str) -> None:
        self._page.goto(url)

    def back(self) -> None:
        self._page.go_back(wait_until="commit")  # nothing is loaded if the page was kept

    def resize(self, width: int) -> None:
        self._page.set_viewport_size({"width": width, "height": HEIGHT})

    def switch_network(self, *, on: bool) -> bool:
        self._context.set_offline(not on)
        return True

    def save_screenshot(self, path: Path) -> None:
        self._page.screenshot(path=path)

    def _evaluate(self, function: str, argument: str) -> str:
        try:
            return str(self._page.evaluate(function, argument))
        except Error as error:
            raise ScriptError(str(error)) from error

    def _press(self, x: int, y: int) -> None:
        self._page.mouse.click(x, y)


class Chromium(Browser):
    name = "chromium"

    @classmethod
    def missing(cls) -> str | None:
        return None if CHROMIUM else "chromium"

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        playwright = self._stack.enter_context(sync_playwright())
        # With scrollbars that take room, and with pages kept for the back button, as people have them.
        ignored = ["--hide-scrollbars", "--disable-back-forward-cache"]
        launch = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS, ignore_default_args=ignored)
        self._browser = self._stack.enter_context(launch)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        with self._browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}) as context:
            yield _ChromiumTab(context)


# Firefox


FIREFOX = next(filter(None, map(shutil.which, ("firefox-esr", "firefox"))), None)


def _click_at(x: int, y: int) -> dict[str, Any]:
    """Return a click, as WebDriver and WebDriver BiDi write it."""
    steps = [{"type": "pointerMove", "x": x, "y": y}]
    steps += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp")]
    return {"actions": [{"type": "pointer", "id": "mouse", "actions": steps}]}


class _FirefoxTab(Tab):
    def __init__(self, browser: "Firefox", context: str) -> None:
        super().__init__()
        self._browser = browser
        self._context = context

    def go(self, url: str) -> None:
        self._call("browsingContext.navigate", url=url, wait="complete")

    def back(self) -> None:
        self._call("browsingContext.traverseHistory", delta=-1)

    def resize(self, width: int) -> None:
        self._call("browsingContext.setViewport", viewport={"width": width, "height": HEIGHT})

    def switch_network(self, *, on: bool) -> bool:
        conditions = None if on else {"type": "offline"}
        self._browser.call("emulation.setNetworkConditions", networkConditions=conditions, contexts=[self._context])
        return True

    def save_screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("browsingContext.captureScreenshot")["data"]))

    def _evaluate(self, function: str, argument: str) -> str:
        answer = self._browser.call(
            "script.callFunction",
            functionDeclaration=function,
            arguments=[{"type": "string", "value": argument}],
            target={"context": self._context},
            awaitPromise=True,
        )
        if answer["type"] == "exception":
            raise ScriptError(answer["exceptionDetails"]["text"])
        return str(answer["result"]["value"])

    def _press(self, x: int, y: int) -> None:
        self._call("input.performActions", **_click_at(x, y))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, context=self._context, **parameters)


class Firefox(Browser):
    name = "firefox"
    keeps_pages = False  # of those with a socket at that moment: a handler of pagehide closes it too late

    @classmethod
    def missing(cls) -> str | None:
        return None if FIREFOX else "firefox-esr"

    def __enter__(self) -> Self:
        assert FIREFOX
        self._stack = ExitStack()
        self._numbers = count(1)
        self._tabs: dict[str, _FirefoxTab] = {}
        home = self._stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
        words = [FIREFOX, "--headless", "--no-remote", "--profile", home, "--remote-debugging-port", "0"]
        # Its crash reporter would be a process that outlives it.
        process = Process(words, env=os.environ | {"HOME": home, "MOZ_CRASHREPORTER_DISABLE": "1"}, name=self.name)
        self._stack.callback(process.close)
        url = process.wait_for_line("BiDi listening on", START_SECONDS).split()[-1] + "/session"
        opening = connect(url, max_size=None, ping_interval=None, open_timeout=scaled(START_SECONDS))
        self._socket = self._stack.enter_context(opening)
        self.call("session.new", capabilities={"alwaysMatch": {}})
        self.call("session.subscribe", events=["log.entryAdded"])
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        user = self.call("browser.createUserContext")["userContext"]
        context = self.call("browsingContext.create", type="tab", userContext=user)["context"]
        tab = self._tabs[context] = _FirefoxTab(self, context)
        tab.resize(WIDTH)
        try:
            yield tab
            self.call("session.status")  # after it come no complaints of before
        finally:
            self.call("browser.removeUserContext", userContext=user)
            del self._tabs[context]

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result; raise ``ScriptError`` if the browser refuses it."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._socket.recv(timeout=scaled(START_SECONDS)))
            if answer.get("method") == "log.entryAdded":
                self._note(answer["params"])
            elif answer.get("id") == number:
                if answer["type"] == "error":
                    raise ScriptError(f"{method}: {answer['error']}: {answer['message']}")
                return dict(answer["result"])

    def _note(self, entry: dict[str, Any]) -> None:
        tab = self._tabs.get(entry["source"].get("context"))
        if tab and entry["level"] in ("error", "warn"):
            tab.complaints.append(entry["text"])


# WebKit


WEBKIT = next(map(str, sorted(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"))), None)
TOOLBAR = "* { min-width: 0; min-height: 0; padding: 0; margin: 0; border-width: 0; font-size: 1px; "
TOOLBAR += "-gtk-icon-transform: scale(0); }"
"""A style of GTK with which the browser's own toolbar is no wider than a phone."""


class _WebKitTab(Tab):
    def __init__(self, browser: "WebKit", session: str) -> None:
        super().__init__()
        self._browser = browser
        self._session = f"/session/{session}"

    def go(self, url: str) -> None:
        self._call("POST", "/url", url=url)

    def back(self) -> None:
        self._call("POST", "/back")

    def resize(self, width: int) -> None:
        self._call("POST", "/window/rect", width=width, height=HEIGHT)

    def switch_network(self, *, on: bool) -> bool:
        return False

    def save_screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))

    def _evaluate(self, function: str, argument: str) -> str:
        return str(self._call("POST", "/execute/sync", script=f"return ({function})(arguments[0]);", args=[argument]))

    def _press(self, x: int, y: int) -> None:
        self._call("POST", "/actions", **_click_at(x, y))

    def _call(self, method: str, path: str, **parameters: Any) -> Any:
        return self._browser.call(method, self._session + path, **parameters)


class WebKit(Browser):
    name = "webkit"

    @classmethod
    def missing(cls) -> str | None:
        missing = [program for program in ("WebKitWebDriver", "Xvfb") if not shutil.which(program)]
        return ", ".join(missing + ([] if WEBKIT else ["MiniBrowser"])) or None

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        home = self._stack.enter_context(TemporaryDirectory(ignore_cleanup_errors=True))
        (Path(home) / "gtk-3.0").mkdir()
        (Path(home) / "gtk-3.0/gtk.css").write_text(TOOLBAR)
        screen = Process(["Xvfb", "-displayfd", "1", "-nolisten", "tcp"], env=os.environ, name="Xvfb")
        self._stack.callback(screen.close)
        display = ":" + screen.wait_for_line(r"^\d+$", START_SECONDS)
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        env = os.environ | {"HOME": home, "XDG_CONFIG_HOME": home, "DISPLAY": display, "NO_AT_BRIDGE": "1"}
        driver = Process(["WebKitWebDriver", f"--port={port}"], env=env, name="WebKitWebDriver")
        self._stack.callback(driver.close)
        wait_for(self._answers, START_SECONDS, "WebKitWebDriver answers")
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """Return a tab of a process of its own: it takes a second, and a session is all that the driver keeps apart."""
        options = {"binary": WEBKIT, "args": ["--automation"]}
        wanted = {"alwaysMatch": {"webkitgtk:browserOptions": options}}
        try:
            session = self.call("POST", "/session", capabilities=wanted)["sessionId"]
        except TimeoutError:  # the driver now and then waits for ever for the browser that it has started
            self.__exit__()
            self.__enter__()
            session = self.call("POST", "/session", capabilities=wanted)["sessionId"]
        try:
            tab = _WebKitTab(self, session)
            tab.resize(WIDTH)
            yield tab
        finally:
            self.call("DELETE", f"/session/{session}")

    def call(self, method: str, path: str, **parameters: Any) -> Any:
        """Send a command and return its value; raise ``ScriptError`` if the driver refuses it."""
        body = json.dumps(parameters).encode() if method == "POST" else None
        request = urllib.request.Request(self._url + path, body, method=method)
        try:
            with urllib.request.urlopen(request, timeout=scaled(START_SECONDS)) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            with error:
                raise ScriptError(f"{path}: {json.load(error)['value']['message']}") from error

    def _answers(self) -> bool:
        try:
            return bool(self.call("GET", "/status"))
        except OSError:
            return False


BROWSERS: list[type[Browser]] = [Chromium, Firefox, WebKit]
