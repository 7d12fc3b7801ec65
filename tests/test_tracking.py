"""Metrics reach vessl in order; whatever vessl does, a run ends well, in bounded time and with at most one warning."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from bitflip.results import tracking
from bitflip.settings.hyperparameters import Hyperparameters

ROOT = Path(__file__).resolve().parents[1]
BOUND_S = 30.0  # for a whole process; says "it ends", not "it is fast"
EXPERIMENT = {"VESSL_EXPERIMENT_ID": "42", "VESSL_ACCESS_TOKEN": "tok"}
ME, EXPERIMENT_42 = "/api/v1/accounts/me", "/api/v1/experiments/42"
METRICS, RUN_METRICS = "/api/v1/experiments/42/metrics", "/exec/v1/run/metrics"
LONG = (20.0, 20.0)  # for servers that answer: a busy machine must not look like a mute server
PAGES: dict[str, tuple[int, tuple[str, str] | None, str]] = {
    "page": (200, ("Content-Type", "text/html"), "<html>Please log in</html>"),
    "elsewhere": (302, ("Location", "/login"), ""),
    "quote": (401, None, "not known: "),
    "list": (200, ("Content-Type", "application/json"), "[]"),
    "word": (200, ("Content-Type", "application/json"), '"fine"'),
}
METRIC_OF_LAYER = {"Misclassification_rate"}
UPDATES = [1.5, 2.5, 3.5]  # what RUN logs as steps 0, 1, 2

RUN = """
import sys
from bitflip.results import tracking

tracking.PATIENCE_S = float(sys.argv[1])
with tracking.connect() as tracker:
    tracking.PATIENCE_S = float(sys.argv[2])
    for step, rate in enumerate([1.5, 2.5, 3.5]):
        tracker.log({"Misclassification_rate": rate}, step)
"""

needs_sdk = pytest.mark.skipif(
    sys.version_info >= (3, 13) or importlib.util.find_spec("vessl") is None,
    reason="needs the vessl SDK, which exists for Python 3.9 to 3.12",
)


def run_script(
    script: str, cwd: Path, environ: Mapping[str, str], *, patience: tuple[float, float] = LONG, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run `script` as a process of its own, with no vessl settings but those given and with `cwd` as its home.

    `patience` is that of the import and that of the updates, for a script that begins with `RUN`.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESSL_")}
    inherited.pop("NO_COLOR", None)
    home = {"HOME": str(cwd), "USERPROFILE": str(cwd), "VESSL_CONFIG_PATH": str(cwd / "vessl" / "config")}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, patience)],
        cwd=cwd,
        env={**inherited, **home, "PYTHONPATH": str(ROOT), **environ},
        timeout=options.pop("timeout", BOUND_S),
        check=False,
        text=True,
        **({"capture_output": True} | options),
    )


def assert_one_warning(result: subprocess.CompletedProcess[str], *parts: str) -> None:
    """Check that the process ended well and that stderr is one warning with `parts` in it."""
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1, result.stderr
    for part in ("warning: vessl: ", *parts, "; the result files on disk are not affected"):
        assert part in result.stderr


# --- against the real SDK, and a server on loopback ---


@dataclass
class Request:
    """One request as the server saw it."""

    method: str
    path: str
    authorization: str | None
    body: Any


@dataclass
class Vessl:
    """A stand-in for the vessl server that keeps what it is asked.

    `respond(path, count)`, with `count` the earlier requests for this path, returns a status, a body to send with 200,
    "mute" (no answer), "hang up" (the connection closes without an answer), "stop" (the last answer of this server),
    "slow" (it takes 4 s), "page" (one for people), "elsewhere" (a redirection), or "quote" (401, with the token in it).
    """

    respond: Callable[[str, int], int | dict[str, Any] | str] = lambda path, count: {}
    requests: list[Request] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    @property
    def environ(self) -> dict[str, str]:
        """The variables that send the SDK here."""
        return {"VESSL_API_HOST": f"http://127.0.0.1:{self.port}"}

    def seen(self) -> list[tuple[str, str]]:
        """Return method and path of each request, in order."""
        return [(request.method, request.path) for request in self.requests]


@pytest.fixture
def vessl() -> Iterator[Vessl]:
    """Serve a `Vessl` on a free port."""
    state = Vessl()

    class Handler(BaseHTTPRequestHandler):
        wbufsize = -1  # one packet for each answer: 0.7 ms instead of 45

        def do_GET(self) -> None:
            text = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            count = sum(request.path == self.path for request in state.requests)
            body = json.loads(text) if text else None
            state.requests.append(Request(self.command, self.path, self.headers.get("Authorization"), body))
            answer = state.respond(self.path, count)
            if answer == "mute":
                state.released.wait(BOUND_S)
            elif answer == "stop":
                server.shutdown()
                server.server_close()
                answer = {}
            elif answer == "slow":
                state.released.wait(4.0)
                answer = {}
            if isinstance(answer, str) and answer in PAGES:
                status, header, page = PAGES[answer]
                self.send_response(status)
                if header:
                    self.send_header(*header)
                self.end_headers()
                self.wfile.write((page + str(self.headers.get("Authorization")) * (answer == "quote")).encode())
                return
            if isinstance(answer, str):
                return
            defaults = {EXPERIMENT_42: {"id": 42}, "/exec/v1/run/plot_volume": {"volume_id": 1}}
            content = (answer or defaults.get(self.path, {})) if isinstance(answer, dict) else {"code": "Refused"}
            self.send_response(answer if isinstance(answer, int) else 200)
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    state.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def metric_entries(requests: list[Request]) -> list[dict[str, Any]]:
    """Return the entries of all metrics requests, without their time stamps."""
    entries = [entry for request in requests if request.body for entry in request.body["metrics"]]
    return [{key: value for key, value in entry.items() if key != "ts"} for entry in entries]


@needs_sdk
@pytest.mark.parametrize("mode", ["experiment", "run"])
def test_metrics_arrive_in_order_and_no_token_is_written(mode: str, vessl: Vessl, tmp_path: Path) -> None:
    """The server sees exactly the expected requests, and the home directory stays as it was."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    config = elsewhere / "run.toml"
    config.write_text('[user]\naccess_token = "tok"\n')
    if mode == "experiment":
        environ = EXPERIMENT
        setup, target, measurement = [("GET", ME)] * 2 + [("GET", EXPERIMENT_42)], METRICS, "experiment_plot_metric"
    else:
        environ = {"VESSL_RUN_INITIAL_CONFIG": str(config)}
        setup, target = [("GET", ME), ("GET", "/exec/v1/run/plot_volume")], RUN_METRICS
        measurement = "run_execution_plot_metric"

    result = run_script(RUN, home, {**vessl.environ, **environ})

    assert (result.returncode, result.stdout) == (0, "")
    assert "warning" not in result.stderr
    # In run mode the SDK watches a directory that only vessl's machines have; elsewhere a thread of its own complains.
    assert result.stderr == "" or mode == "run"
    assert vessl.seen() == setup + [("POST", target)] * len(UPDATES)
    assert {request.authorization for request in vessl.requests} == {"Token tok"}
    assert metric_entries(vessl.requests) == [
        {"fields": {"Misclassification_rate": rate}, "measurement": measurement, "tags": {"step": str(step)}}
        for step, rate in enumerate(UPDATES)
    ]
    assert list(home.rglob("*")) == []


WHOLE_S = 200.0  # for a process that runs a campaign and draws its plots
WHOLE_RUN = """
import runpy, sys
from bitflip.results import tracking

tracking.PATIENCE_S = 20.0
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@needs_sdk
@pytest.mark.parametrize("script", ["main.py", "neuron.py", "weight.py"])
def test_a_run_reports_the_rates_of_its_table(script: str, vessl: Vessl, tmp_path: Path) -> None:
    """Hyperparameters come as environment variables, as in a sweep; metrics arrive layer by layer, then the means."""
    settings = {"dataset": "digits", "seed": "7", "bit_flip_pos": "1", "layer_num": "1,4", "output_path": str(tmp_path)}
    begin = f"import sys; sys.argv += [{str(ROOT / script)!r}]\n"
    result = run_script(begin + WHOLE_RUN, tmp_path, {**vessl.environ, **EXPERIMENT, **settings}, timeout=WHOLE_S)
    assert result.returncode == 0, result.stderr
    assert "warning" not in result.stderr
    (table,) = tmp_path.glob("*digits_vgg_digits_7.csv")
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == 2
    sent = [(int(entry["tags"]["step"]), entry["fields"]) for entry in metric_entries(vessl.requests)]
    for row, (step, fields) in zip(rows, sent[:2], strict=True):
        assert step == int(row["layer"])
        assert fields == {
            name: pytest.approx(float(row["seed_7"]), abs=1e-6) for name in METRIC_OF_LAYER | {row["name"]}
        }
    step, fields = sent[2]
    assert step == int(rows[-1]["layer"])
    assert fields["seed"] == 7
    assert fields.keys() == {"seed", *(f"mean/{row['name']}" for row in rows)}
    assert len(sent) == 3
    setup = [("GET", ME)] * 2 + [("GET", EXPERIMENT_42)]
    assert vessl.seen() == setup + [("POST", METRICS)] * len(sent)


@needs_sdk
@pytest.mark.parametrize("script", ["main.py", "weight.py"])
def test_a_server_that_goes_in_mid_run_changes_no_result(script: str, vessl: Vessl, tmp_path: Path) -> None:
    """It answers the first running rate and nothing after it."""
    begin = f"import sys; sys.argv += [{str(ROOT / script)!r}]\n"
    begin += "from bitflip.campaign import loop; loop.RUNNING_RATE_EVERY = 0.0\n"
    settings = {"dataset": "digits", "seed": "7", "layer_num": "1,4", "batch_size": "100", "engine": "reference"}
    settings |= {"detailed_log": "true", "fault_table": "true", "plots": "false"}
    vessl.respond = at(METRICS, "stop", 1)
    found = []
    for name, managed in (("with", {**vessl.environ, **EXPERIMENT}), ("without", {})):
        environ = {**settings, **managed, "output_path": str(tmp_path / name)}
        result = run_script(begin + WHOLE_RUN, tmp_path, environ, timeout=WHOLE_S)
        assert result.returncode == 0, result.stderr
        warnings = [line for line in result.stderr.splitlines() if "warning" in line]
        assert len(warnings) == len(managed) // 3, result.stderr
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir() if path.suffix != ".json"})
    assert len([path for _, path in vessl.seen() if path == METRICS]) == 2
    assert found[0] == found[1]
    assert len(found[0]) == 5


@needs_sdk
def test_a_run_of_many_seeds_reports_means_over_them(vessl: Vessl, tmp_path: Path) -> None:
    settings = {"dataset": "digits", "seeds": "1-3", "bit_flip_pos": "1", "layer_num": "1,4"}
    begin = f"import sys; sys.argv += [{str(ROOT / 'main.py')!r}]\n"
    environ = {**vessl.environ, **EXPERIMENT, **settings, "output_path": str(tmp_path)}
    result = run_script(begin + WHOLE_RUN, tmp_path, environ, timeout=WHOLE_S)
    assert result.returncode == 0, result.stderr
    tables = {seed: tmp_path / f"digits_vgg_digits_{seed}.csv" for seed in (1, 2, 3)}
    rates = [
        [float(row[f"seed_{seed}"]) for row in csv.DictReader(table.read_text().splitlines())]
        for seed, table in tables.items()
    ]
    means = [sum(each) / len(each) for each in zip(*rates, strict=True)]
    sent = [entry["fields"] for entry in metric_entries(vessl.requests)]
    assert [fields["Misclassification_rate"] for fields in sent[:2]] == pytest.approx(means, abs=1e-6)
    assert "seed" not in sent[2]
    assert len(sent) == 3


SWEEPS, RUN_SPEC = (
    f"/api/v1/organizations/ORG/projects/PROJ/{what}" for what in ("sweeps", "run/spec/create_from_yaml")
)
ANSWERS: dict[str, dict[str, Any]] = {
    "/api/v1/organizations/ORG": {"name": "ORG"},
    "/api/v1/organizations/ORG/projects": {"results": [{"id": 2, "name": "PROJ"}]},
    "/api/v1/organizations/ORG/clusters": {"clusters": [{"id": 3, "name": "CLUSTER"}]},
    "/api/v1/organizations/ORG/clusters/3/resource_specs": {"results": [{"id": 5, "name": "PRESET"}]},
    SWEEPS: {"name": "first-sweep"},
}


def as_user(vessl: Vessl, home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a user of vessl does, who has an organization and a project."""
    vessl.respond = lambda path, count: ANSWERS.get(path, {})
    config = home / "vessl-config"
    config.write_text('[user]\naccess_token = "tok"\ndefault_organization = "ORG"\ndefault_project = "PROJ"\n')
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESSL_")}
    environ = {"HOME": str(home), "VESSL_CONFIG_PATH": str(config), "VESSL_DATA_COLLECTION_OPT_OUT": "true"}
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**inherited, **vessl.environ, **environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=2 * BOUND_S,
    )


@needs_sdk
def test_a_sweep_over_seeds_is_created(vessl: Vessl, tmp_path: Path) -> None:
    where = ["--cluster", "CLUSTER", "--preset", "PRESET", "--repository", "github/OWNER/REPOSITORY/abc"]
    what = ["--seeds", "1-3,7", "--script", "weight.py", "--parallel", "2", "batch_size=64"]
    done = as_user(vessl, tmp_path, sys.executable, "vessl/sweep.py", *where, *what)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "sweep first-sweep over 4 seeds"
    (body,) = (request.body for request in vessl.requests if request.method == "POST")
    assert vessl.seen()[-1] == ("POST", SWEEPS)
    assert body["objective"]["metric"] == "Misclassification_rate"
    seeds = {"name": "seed", "type": "int", "range": {"list": ["1", "2", "3", "7"]}}
    assert body["search_space"] == {"parameters": [seeds]}
    assert (body["algorithm"], body["max_experiment_count"], body["parallel_experiment_count"]) == ("grid", 4, 2)
    assert (body["cluster_id"], body["resource_spec_id"]) == (3, 5)
    assert body["start_command"] == "pip install -r requirements.txt && python weight.py --detailed-log"
    assert body["hyperparameters"] == [{"key": "batch_size", "value": "64"}]
    code = {"git_provider": "github", "git_owner": "OWNER", "git_repo": "REPOSITORY", "git_ref": "abc"}
    assert {"source_type": "code", "mount_path": "/code", "code": code} in body["volumes"]["requests"]
    assert body["volumes"]["working_dir"] == "/code"


@needs_sdk
@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], r"vessl: no sweep was created \(.*\); pip install vessl && vessl configure sets up what it takes"),
        (["--seeds=4-1"], r"seeds \(--seeds\): expected different whole numbers from 0, and ranges .*, got '4-1'"),
    ],
)
def test_a_sweep_that_can_not_be_created_says_so(more: list[str], sentence: str, tmp_path: Path) -> None:
    where = ["--cluster", "CLUSTER", "--preset", "PRESET", "--repository", "github/OWNER/REPOSITORY/abc"]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("VESSL_")}
    done = subprocess.run(
        [sys.executable, "vessl/sweep.py", *where, *more],
        cwd=ROOT,
        env={**inherited, "HOME": str(tmp_path), "VESSL_CONFIG_PATH": str(tmp_path / "none")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_S,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(f"error: {sentence}\n", done.stderr)


@needs_sdk
def test_the_run_spec_is_sent_as_it_is(vessl: Vessl, tmp_path: Path) -> None:
    """What the server makes of it can't be seen here; the keys are those that the command line is known to take."""
    import yaml

    client = str(Path(sys.executable).with_name("vessl"))
    as_user(vessl, tmp_path, client, "run", "create", "-f", "vessl/run.yaml")
    (body,) = (request.body for request in vessl.requests if request.method == "POST")
    assert vessl.seen()[-1] == ("POST", RUN_SPEC)
    text = (ROOT / "vessl" / "run.yaml").read_text()
    spec = yaml.safe_load(text)
    assert yaml.safe_load(body["yaml_spec"]) == spec
    assert spec.keys() == {"name", "description", "resources", "image", "import", "export", "run", "env"}
    assert spec["run"] == [
        {"command": "pip install -r requirements.txt && python main.py --detailed-log", "workdir": "/code"}
    ]
    assert all(isinstance(value, str) for value in spec["env"].values())
    assert spec["env"].keys() <= Hyperparameters.model_fields.keys()


@needs_sdk
@pytest.mark.parametrize("first", [".", "vessl"])
def test_the_folder_of_the_sweep_does_not_hide_the_sdk(first: str, tmp_path: Path) -> None:
    """Neither from the entry scripts, whose sys.path begins with the repository, nor from vessl/sweep.py."""
    script = f"import sys; sys.path.insert(0, {str(ROOT / first)!r}); import vessl; print(vessl.__file__)"
    done = run_script(script, tmp_path, {"NO_COLOR": "1"})
    assert Path(done.stdout.splitlines()[-1]).parts[-2:] == ("vessl", "__init__.py"), done.stderr


def test_without_the_sdk_the_folder_is_not_taken_for_it(tmp_path: Path) -> None:
    done = run_script(
        "import sys; sys.path = [p for p in sys.path if 'site-packages' not in p]\n" + RUN, tmp_path, EXPERIMENT
    )
    assert_one_warning(done, "no metrics are sent", "No module named 'vessl'")


Respond = Callable[[str, int], "int | dict[str, Any] | str"]


def everywhere(answer: int | dict[str, Any] | str) -> Respond:
    """Give `answer` to every request."""
    return lambda path, count: answer


def at(target: str, answer: int | dict[str, Any] | str, *counts: int) -> Respond:
    """Give `answer` to the requests for `target` that are in `counts` (none named: to all of them)."""
    return lambda path, count: answer if path == target and (not counts or count in counts) else {}


@needs_sdk
@pytest.mark.parametrize(
    ("respond", "patience", "expected"),
    [
        pytest.param(everywhere(500), LONG, ["no metrics are sent", "Refused (500)"], id="500 from the start"),
        pytest.param(everywhere(401), LONG, ["no metrics are sent", "InvalidTokenError"], id="invalid token"),
        pytest.param(at(EXPERIMENT_42, 404), LONG, ["no metrics are sent", "did not confirm"], id="unknown experiment"),
        pytest.param(everywhere("mute"), (5, 5), ["3 of 3", "no answer"], id="mute from the start"),
        pytest.param(at(METRICS, 500), LONG, ["3 of 3", "(500)"], id="500 for all metrics"),
        pytest.param(at(METRICS, 500, 1), LONG, ["1 of 3", "(500)"], id="500 for one metric"),
        pytest.param(at(METRICS, {"Rejected": 1}, 0, 2), LONG, ["2 of 3", "rejected"], id="metrics rejected"),
        pytest.param(at(METRICS, "hang up", 2), LONG, ["1 of 3"], id="connection closed without an answer"),
        pytest.param(at(METRICS, "stop"), LONG, ["2 of 3", "refused"], id="server stops in mid-run"),
        pytest.param(
            at(METRICS, "page", 0, 2), LONG, ["2 of 3", "no JSON object: <html>Please log"], id="a page for people"
        ),
        pytest.param(at(METRICS, "list", 0), LONG, ["1 of 3", "no JSON object: []"], id="a list"),
        pytest.param(at(METRICS, "word", 1), LONG, ["1 of 3", 'no JSON object: "fine"'], id="a text"),
        pytest.param(at(METRICS, "elsewhere"), LONG, ["3 of 3", "sends elsewhere (302, to /login)"], id="redirected"),
        pytest.param(at(METRICS, "mute", 1), (20, 2), ["2 of 3", "no answer"], id="mute in mid-run"),
    ],
)
def test_a_failing_server_costs_one_warning(
    respond: Respond, patience: tuple[float, float], expected: list[str], vessl: Vessl, tmp_path: Path
) -> None:
    """The warning tells how much is lost, and why."""
    vessl.respond = respond
    result = run_script(RUN, tmp_path, {**vessl.environ, **EXPERIMENT}, patience=patience)
    assert vessl.requests
    assert_one_warning(result, *expected)


@pytest.mark.parametrize("content", [b"", None, "", b"{}", b' {"a": 1}\n', '{"code": null}'])
def test_an_empty_answer_or_an_object_is_a_success(content: bytes | str | None) -> None:
    tracking._require_answer(types.SimpleNamespace(data=content), METRICS)


@pytest.mark.parametrize(
    "content", [b"<html>", b"[]", b'[{"a": 1}]', '"sent"', b"3", b"null", b"true", b"NaN", b"{", b"\xff"]
)
def test_no_other_answer_is_a_success(content: bytes | str) -> None:
    with pytest.raises(RuntimeError, match="the server's answer is no JSON object: "):
        tracking._require_answer(types.SimpleNamespace(data=content), METRICS)


def test_half_a_token_is_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VESSL_ACCESS_TOKEN", "one two/three")
    page = f"<p>{'word ' * 9} one two%2Fthree</p>"
    with pytest.raises(RuntimeError) as caught:
        tracking._require_answer(types.SimpleNamespace(data=page), METRICS)
    assert "one" not in str(caught.value)


@needs_sdk
@pytest.mark.parametrize("mode", ["experiment", "run"])
def test_no_server_costs_one_warning(mode: str, vessl: Vessl, tmp_path: Path) -> None:
    """Nothing listens: a token with no network."""
    config = tmp_path / "run.toml"
    config.write_text('[user]\naccess_token = "tok"\n')
    environ = EXPERIMENT if mode == "experiment" else {"VESSL_RUN_INITIAL_CONFIG": str(config)}
    closed = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    port = closed.server_address[1]
    closed.server_close()
    result = run_script(RUN, tmp_path, {"VESSL_API_HOST": f"http://127.0.0.1:{port}", **environ})
    assert_one_warning(result, "no metrics are sent", "refused")


@needs_sdk
def test_a_malformed_token_is_not_printed(vessl: Vessl, tmp_path: Path) -> None:
    """A line end behind the token makes an error that quotes it."""
    result = run_script(RUN, tmp_path, {**vessl.environ, **EXPERIMENT, "VESSL_ACCESS_TOKEN": "secret-token\n"})
    assert_one_warning(result, "no metrics are sent", "ValueError")
    assert "secret" not in result.stderr


@needs_sdk
@pytest.mark.parametrize("mode", ["experiment", "run"])
@pytest.mark.parametrize("where", ["from the start", "for the metrics"])
def test_a_token_that_the_server_quotes_is_not_printed(where: str, mode: str, vessl: Vessl, tmp_path: Path) -> None:
    token = "abc/DEF+123=="
    config = tmp_path / "run.toml"
    config.write_text(f'[user]\naccess_token = "{token}"\n')
    own = {"VESSL_ACCESS_TOKEN": token, "VESSL_EXPERIMENT_ID": "42"}
    environ = own if mode == "experiment" else {"VESSL_RUN_INITIAL_CONFIG": str(config)}
    metrics = METRICS if mode == "experiment" else RUN_METRICS
    vessl.respond = everywhere("quote") if where == "from the start" else at(metrics, "quote")
    result = run_script(RUN, tmp_path, {**vessl.environ, **environ})
    assert vessl.requests
    assert any(token in str(request.authorization) for request in vessl.requests)
    assert result.returncode == 0
    warning = result.stderr.splitlines()[-1]  # in run mode, the SDK may write about a thread of its own
    lost = "no metrics are sent" if where == "from the start" and mode == "experiment" else "3 of 3"
    assert warning.startswith("warning: vessl: ")
    assert lost in warning
    assert token not in result.stderr
    assert "DEF" not in result.stderr, "nor a part of it"
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != config]
    assert not any(token in path.read_text(errors="replace") for path in written)


@needs_sdk
def test_a_slow_server_costs_ten_seconds_at_most(vessl: Vessl, tmp_path: Path) -> None:
    vessl.respond = at(METRICS, "slow")
    script = RUN.replace("[1.5, 2.5, 3.5]", "[1.5] * 8")
    result = run_script(script, tmp_path, {**vessl.environ, **EXPERIMENT}, patience=(20.0, 5.0))
    assert_one_warning(result, "of 8 metric updates were not sent (not finished after 10 s)")


@needs_sdk
@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_the_terminal_is_left_alone(vessl: Vessl, tmp_path: Path) -> None:
    """On a terminal that answers nothing, nothing is asked, and what the user typed is still there to be read."""
    master, slave = os.openpty()
    os.write(master, b"typed\n")
    script = RUN + "import os; print('read', input(), 'NO_COLOR' in os.environ)"
    try:
        result = run_script(
            script,
            tmp_path,
            {**vessl.environ, **EXPERIMENT, "TERM": "xterm-256color"},
            capture_output=False,
            stdin=slave,
            stdout=slave,
            stderr=subprocess.PIPE,
        )
        shown = os.read(master, 10_000)
    finally:
        os.close(master)
        os.close(slave)
    assert (result.returncode, result.stderr) == (0, "")
    assert shown == b"typed\r\nread typed False\r\n"  # the first is the terminal's own echo
    assert len(metric_entries(vessl.requests)) == len(UPDATES)


# --- with a stub in the place of the SDK ---


def stub(tmp_path: Path, source: str) -> dict[str, str]:
    """Put a module `vessl` in front of any installed one; return the environment of a managed run that finds it."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "vessl.py").write_text(source)
    return {**EXPERIMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path / "stub"), str(ROOT)])}


ONE_CALL_EXITS = """
class internal: pass
def log(payload, step, ts):
    if step == 1: raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("source", "patience", "expected"),
    [
        pytest.param("raise ImportError('absent')", LONG, ["no metrics are sent", "ImportError: absent"], id="absent"),
        pytest.param("raise SystemExit(3)", LONG, ["no metrics are sent", "SystemExit: 3"], id="import exits"),
        pytest.param("raise KeyboardInterrupt", LONG, ["no metrics are sent"], id="import interrupts"),
        pytest.param("import time; time.sleep(100)", (0.5, 0.5), ["3 of 3", "no answer"], id="import never ends"),
        pytest.param("log = None", LONG, ["no metrics are sent", "AttributeError"], id="another API"),
        pytest.param(ONE_CALL_EXITS, LONG, ["1 of 3", "SystemExit: 3"], id="call exits"),
    ],
)
def test_a_failing_import_costs_one_warning(
    source: str, patience: tuple[float, float], expected: list[str], tmp_path: Path
) -> None:
    """Whatever the import raises, the run goes on."""
    assert_one_warning(run_script(RUN, tmp_path, stub(tmp_path, source), patience=patience), *expected)


@pytest.mark.parametrize("before", [{}, {"NO_COLOR": "", "VESSL_SAVE_CONFIG": "yes"}], ids=["unset", "set"])
def test_the_import_sees_its_settings_and_nothing_else_does(before: dict[str, str], tmp_path: Path) -> None:
    """The environment is as it was when `connect` returns."""
    show = "import os; names = 'NO_COLOR', 'VESSL_SAVE_CONFIG', 'VESSL_LOG_FAIL_ON_ERROR'\n"
    show += "print([os.environ.get(name) for name in names])\n"
    environ = {**stub(tmp_path, "class internal: pass\ndef log(**_): pass\n" + show), **before}
    result = run_script(RUN + show, tmp_path, environ)
    after = [before.get("NO_COLOR"), before.get("VESSL_SAVE_CONFIG"), None]
    assert (result.stdout, result.stderr) == (f"{['1', 'false', 'true']}\n{after}\n", "")


Log = Callable[[Callable[..., object]], None]


@pytest.fixture
def use_log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """Return a function that puts its argument in the place of `vessl.log`, in this process."""

    def use(log: Callable[..., object]) -> None:
        module = types.ModuleType("vessl")
        module.__dict__.update(log=log, internal=types.SimpleNamespace())
        monkeypatch.setitem(sys.modules, "vessl", module)

    return use


SlowLog = Callable[[float], list[int]]


@pytest.fixture
def use_slow_log(use_log: Log) -> SlowLog:
    """Return a function that makes each `vessl.log` take some seconds; it returns a list that gets the steps sent."""

    def use(seconds: float) -> list[int]:
        steps: list[int] = []

        def log(payload: dict[str, float], step: int, ts: float) -> None:
            time.sleep(seconds)
            steps.append(step)

        use_log(log)
        return steps

    return use


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt, SystemExit], ids=lambda error: str(error))
def test_leaving_the_block_sends_what_is_queued(error: type[BaseException] | None, use_slow_log: SlowLog) -> None:
    """An exception passes, after the metrics are out."""
    sent = use_slow_log(0.01)

    def run() -> None:
        with tracking.connect(EXPERIMENT) as tracker:
            for step in range(5):
                tracker.log({"rate": 1.0}, step)
            if error:
                raise error

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    assert sent == list(range(5))


def test_a_slow_server_is_waited_for_only_so_long(
    use_slow_log: SlowLog, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each call makes progress, and still the sum is bounded; nothing is sent after `close`."""
    monkeypatch.setattr(tracking, "DRAIN_S", 0.3)
    sent = use_slow_log(0.1)
    tracker = tracking.connect(EXPERIMENT)
    for step in range(100):
        tracker.log({"rate": 1.0}, step)
    tracker.close()
    count = len(sent)
    assert 0 < count < 100
    warning = capsys.readouterr().err
    assert f"{100 - count} of 100 metric updates were not sent (not finished after 0.3 s)" in warning
    time.sleep(0.3)
    assert len(sent) <= count + 1  # the one that was under way


def test_log_never_waits_and_close_is_final(
    use_log: Log, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A call that gets no answer holds up nothing; a second `close` and a late `log` are silent."""
    monkeypatch.setattr(tracking, "PATIENCE_S", 0.2)
    answer = threading.Event()
    use_log(lambda payload, step, ts: answer.wait(BOUND_S))
    start = time.monotonic()
    tracker = tracking.connect(EXPERIMENT)
    for step in range(1000):
        tracker.log({"rate": 1.0}, step)
    tracker.close()
    tracker.log({"rate": 1.0}, 1000)
    tracker.close()
    assert time.monotonic() - start < BOUND_S / 2
    answer.set()
    assert capsys.readouterr().err.splitlines() == [
        "warning: vessl: 1000 of 1000 metric updates were not sent (no answer for 0 s); "
        "the result files on disk are not affected"
    ]


def test_what_vessl_gets(use_log: Log) -> None:
    """Names and values are made fit, the time is that of `log`, and an update without a value is not sent."""
    calls: list[tuple[dict[str, float], int, float]] = []
    use_log(lambda payload, step, ts: calls.append((payload, step, ts)))
    start = time.time()
    with tracking.connect(EXPERIMENT) as tracker:
        tracker.log({"mean rate": 2, "worst": float("inf")}, step=7)
        tracker.log({"worst": float("nan")}, step=8)
        tracker.log({}, step=9)
    assert [(payload, step) for payload, step, _ in calls] == [({"mean_rate": 2.0}, 7)]
    assert start <= calls[0][2] <= time.time()


# --- not managed ---


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="nothing set"),
        pytest.param({"VESSL_EXPERIMENT_ID": "42"}, id="no token"),
        pytest.param({"VESSL_ACCESS_TOKEN": "tok"}, id="only a token"),
        pytest.param({"VESSL_EXPERIMENT_ID": "42", "VESSL_ACCESS_TOKEN": ""}, id="empty token"),
        pytest.param({"VESSL_RUN_INITIAL_CONFIG": ""}, id="empty run mode"),
    ],
)
def test_a_run_that_is_not_managed_is_left_alone(environ: dict[str, str], tmp_path: Path) -> None:
    """Nothing is imported, started or printed."""
    script = RUN + "import threading\nif 'vessl' in sys.modules or threading.active_count() > 1: raise SystemExit(1)"
    result = run_script(
        script, tmp_path, {**stub(tmp_path, "print('imported')"), **dict.fromkeys(EXPERIMENT, ""), **environ}
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# --- names and values ---


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param("Misclassification_rate", "Misclassification_rate", id="good"),
        pytest.param("layer/0/conv-1", "layer/0/conv-1", id="groups"),
        pytest.param("features.0 (%)\n", "features_0_____", id="bad characters"),
        pytest.param("rate µ²", "rate___", id="not ASCII"),
        pytest.param("/a//b/", "a/b", id="stray slashes"),
        pytest.param("", "_", id="empty"),
        pytest.param("//", "_", id="only slashes"),
    ],
)
def test_names_are_made_fit(name: str, expected: str) -> None:
    """Every name becomes one that vessl takes."""
    assert tracking.sanitise({name: 1.0}) == {expected: 1.0}


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -float("inf"), None, "text", 10**400], ids=lambda value: str(value)[:6]
)
def test_values_that_are_not_finite_numbers_are_dropped(value: Any) -> None:
    """The rest of the payload stays."""
    assert tracking.sanitise({"bad": value, "good": 3}) == {"good": 3.0}


def test_integers_become_floats() -> None:
    """A series has one type."""
    assert [type(value) for value in tracking.sanitise({"a": 1, "b": True}).values()] == [float, float]
