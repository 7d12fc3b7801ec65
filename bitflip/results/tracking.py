"""Metrics to vessl.ai when the run is managed by it, nothing at all otherwise.

>>> with connect(environ={}) as tracker:  # not managed: a tracker that does nothing
...     tracker.log({"Misclassification_rate": 1.5}, step=0)

The vessl SDK decides its mode, talks to its server and probes the terminal while it is *imported*, and none of its
requests has a time-out. So one daemon thread imports it and makes every call, fed by a queue, and a run waits for that
thread only at its start and at its end, both bounded. Metrics are a convenience and the files on disk are the truth:
whatever goes wrong here becomes one warning, never an error.
"""

from __future__ import annotations

import importlib
import json
import logging
import math
import os
import queue
import re
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from bitflip.results import masking

PATIENCE_S = 5.0
"""How long the import, or one request, may take before a run stops waiting for it; seconds."""

DRAIN_S = 10.0
"""How long `Tracker.close` waits at most, even for a slow server that still makes progress; seconds."""

_IMPORT_ENVIRONMENT = {
    "NO_COLOR": "1",  # else the import queries the terminal: up to 11 s without an answer, and it eats typed input
    "VESSL_SAVE_CONFIG": "false",  # else the token is written in plain text to ~/.vessl/config
    "VESSL_LOG_FAIL_ON_ERROR": "true",  # else a failed call is several lines on stderr for each metric, and not raised
}


class Tracker:
    """Takes metrics and does nothing with them; closed on exit from a `with` block, whatever ended the block."""

    def log(self, payload: Mapping[str, float], step: int) -> None:
        """Hand over the metrics of one step, without waiting; values that are not finite numbers are left out."""

    def close(self) -> None:
        """Send what is still queued, within `PATIENCE_S` and `DRAIN_S`; a second call does nothing."""

    def __enter__(self) -> Tracker:
        """Return the tracker itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close, and let an exception pass."""
        self.close()


def connect(environ: Mapping[str, str] | None = None) -> Tracker:
    """Return a tracker that sends to vessl if `environ` (default: `os.environ`) says that vessl manages this run.

    `environ` decides only whether to import the SDK, which then reads `os.environ` itself. The import takes about 1 s;
    after `PATIENCE_S` it is left to go on in the background.
    """
    environ = os.environ if environ is None else environ
    as_run = bool(environ.get("VESSL_RUN_INITIAL_CONFIG"))
    as_experiment = bool(environ.get("VESSL_EXPERIMENT_ID") and environ.get("VESSL_ACCESS_TOKEN"))
    return _VesslTracker() if as_run or as_experiment else Tracker()


def sanitise(payload: Mapping[str, float]) -> dict[str, float]:
    """Return the part of `payload` that vessl accepts: finite numbers, as floats, under names that it allows.

    >>> sanitise({"SDC rate (%)": 2, "/layer//0/": 0.5, "mean": float("nan")})
    {'SDC_rate____': 2.0, 'layer/0': 0.5}
    """
    clean = {}
    for name, value in payload.items():
        try:
            number = float(value)  # always a float: a field that is first an integer could not become one later
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(number):  # the SDK would write NaN, which is not JSON
            clean[_metric_name(name)] = number
    return clean


def _metric_name(name: str) -> str:
    # One bad name makes the server refuse the whole payload. Slashes make groups: none outermost, none doubled.
    name = re.sub(r"[^a-zA-Z0-9/_-]", "_", name)
    return re.sub(r"/+", "/", name).strip("/") or "_"


class _VesslTracker(Tracker):
    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()  # None: no more to come
        self._queued = 0
        self._sent = 0
        self._fatal = ""  # why nothing at all can be sent
        self._problem = ""  # why the latest failed update failed
        self._refusal = ""  # what the SDK wrote to its log about the current update
        self._done = False  # closed, or warned that nothing is sent
        self._abandoned = False
        self._busy_since = time.monotonic()  # infinite while the worker has nothing to do
        self._imported = threading.Event()
        self._worker = threading.Thread(target=self._work, name="vessl", daemon=True)
        self._worker.start()
        # The main thread goes on once the import is over: two threads that import the same packages can see them half
        # initialised, and a data loader that forks in the middle of an import would copy locked import locks.
        self._imported.wait(PATIENCE_S)
        self._warn_if_fatal()

    def log(self, payload: Mapping[str, float], step: int) -> None:
        self._warn_if_fatal()
        if not self._done and (metrics := sanitise(payload)):
            self._queued += 1
            self._queue.put({"payload": metrics, "step": int(step), "ts": time.time()})

    def close(self) -> None:
        try:
            self._drain()
        finally:  # an impatient Ctrl-C gets the count too
            self._abandoned = True
            self._warn_if_fatal()
            lost = self._queued - self._sent
            if lost and not self._done:
                _warn(f"{lost} of {self._queued} metric updates were not sent ({self._problem or 'interrupted'})")
            self._done = True

    def _drain(self) -> None:
        self._queue.put(None)
        deadline = time.monotonic() + DRAIN_S
        while self._worker.is_alive() and not self._done:
            now = time.monotonic()
            if now > deadline:
                self._problem = f"not finished after {DRAIN_S:g} s"
                return
            if now > self._busy_since + PATIENCE_S:
                self._problem = f"no answer for {now - self._busy_since:.0f} s"
                return
            self._worker.join(0.02)

    def _warn_if_fatal(self) -> None:
        if self._fatal and not self._done:
            self._done = True
            _warn(f"no metrics are sent from this run ({self._fatal})")

    def _work(self) -> None:
        try:
            send = self._import_sdk()
        except BaseException as error:  # also SystemExit: nothing that happens in the SDK may end or fail the run
            self._fatal = _describe(error)
            return
        finally:
            self._imported.set()
        self._busy_since = math.inf
        while (update := self._queue.get()) is not None and not self._abandoned:
            self._busy_since, self._refusal = time.monotonic(), ""
            try:
                send(**update)
                if self._refusal:
                    self._problem = self._refusal
                else:
                    self._sent += 1
            except BaseException as error:  # the next update may well get through
                self._problem = _describe(error)
            self._busy_since = math.inf

    def _import_sdk(self) -> Callable[..., object]:
        for name in ("vessl.util.logger", "urllib3.connectionpool"):
            logging.getLogger(name).addFilter(self._overhear)
        with _environment(_IMPORT_ENVIRONMENT):
            vessl = importlib.import_module("vessl")
            self._look_at_answers()
        if getattr(vessl, "__file__", None) is None and hasattr(vessl, "__path__"):  # a folder of that name
            raise ModuleNotFoundError("No module named 'vessl'")
        # An experiment that the server cannot show leaves the SDK unmanaged; then `log` silently does nothing. The name
        # is private: where it is gone, believe that all is well.
        if getattr(getattr(vessl.internal, "_run", None), "_mode", "MANAGED") != "MANAGED":
            raise RuntimeError("the server did not confirm the experiment")
        send: Callable[..., object] = vessl.log
        return send

    def _look_at_answers(self) -> None:
        """Let an update fail whose answer the SDK takes for a success, and which is none: a page for people, say.

        The class is internal to the SDK; where it is gone, believe that all is well.
        """
        try:
            client = importlib.import_module("vessl.openapi_client.rest").RESTClientObject
        except (ImportError, AttributeError):
            return
        request = client.request

        def looked_at(rest: Any, method: str, url: str, *args: Any, **kwargs: Any) -> Any:
            answer = request(rest, method, url, *args, **kwargs)
            if method == "POST" and threading.current_thread() is self._worker:
                _require_answer(answer, url)
            return answer

        client.request = looked_at

    def _overhear(self, record: logging.LogRecord) -> bool:
        """Keep what this thread's SDK and its retries would print for every update to one warning at the end."""
        if threading.current_thread() is not self._worker or record.levelno < logging.WARNING:
            return True
        if "rejected" in record.getMessage():  # the server answered 200 and still dropped metrics
            self._refusal = textwrap.shorten(_masked(record.getMessage()), 200)
        return False


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _describe(error: BaseException) -> str:
    root = error  # the SDK calls every HTTP error at its start an expired token; what came first is the better clue
    while inner := root.__cause__ or (None if root.__suppress_context__ else root.__context__):
        root = inner
    chain = [error] if root is error else [error, root]
    words = (_masked(f"{type(link).__name__}: {link}") for link in chain)  # before half of a token is cut off
    return " from ".join(textwrap.shorten(text, 160) for text in words)


def _require_answer(answer: Any, url: str) -> None:
    """Check that an answer comes from the server that was asked, and is empty or a JSON object, as the API's are.

    Raises:
        RuntimeError: if it is not.
    """
    raw = getattr(answer, "urllib3_response", answer)
    history = getattr(getattr(raw, "retries", None), "history", ())
    for step in history:
        if step.redirect_location:
            raise RuntimeError(f"the server sends elsewhere ({step.status}, to {step.redirect_location})")
    content = answer.data or b""
    found = content.decode(errors="replace") if isinstance(content, bytes) else str(content)
    try:
        fits = isinstance(json.loads(found.strip() or "{}"), dict)
    except ValueError:
        fits = False
    if not fits:  # masked before half of a token is cut off
        raise RuntimeError(f"the server's answer is no JSON object: {textwrap.shorten(_masked(found), 60)}")


def _masked(text: str) -> str:
    """A text without the access token, in any form in which a server or a library may quote it."""
    text = masking.without(text, _tokens())
    return re.sub(r"Token \S+", "Token ***", text)


def _tokens() -> list[str]:
    """The access tokens that the SDK may use: of the environment, of the run's configuration, of the user's."""
    found = [os.environ.get("VESSL_ACCESS_TOKEN", "")]
    home = os.environ.get("VESSL_CONFIG_PATH") or os.path.expanduser("~/.vessl/config")
    for path in (os.environ.get("VESSL_RUN_INITIAL_CONFIG"), home):
        with suppress(OSError):
            text = Path(path).read_text(encoding="utf-8", errors="replace") if path else ""
            found += re.findall(r"""^\s*(?:default_)?access_token\s*[=:]\s*["']?([^"'\s]+)""", text, flags=re.MULTILINE)
    return sorted(filter(None, found), key=len, reverse=True)


def _warn(text: str) -> None:
    sentence = f"warning: vessl: {_masked(text)}; the result files on disk are not affected"
    print(sentence, file=sys.stderr, flush=True)
