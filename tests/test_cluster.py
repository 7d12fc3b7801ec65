"""A run on a Ray cluster ends in the bytes of the run in one process, whatever becomes of its workers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, RunScript
from PIL import Image

from bitflip import files
from bitflip.cluster import joining, shards
from bitflip.cluster.shards import Facts, Parcel, Refusal, Worker
from bitflip.data import images as data_images
from bitflip.faults.flips import Flips
from bitflip.faults.tasks import Cut
from bitflip.network.layers import Layer
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.settings.hyperparameters import Hyperparameters

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray, which is not made for every Python"
)
PATIENCE_S = 200.0  # says that it ends, not that it is fast
BATCH = 10

# A network that takes its time, so that a run is still under way when a test has found what to kill.
SLOW = """
import time
from pathlib import Path
from torch import nn

SECONDS = Path(__file__).with_name("seconds.txt")

class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.linear = nn.Linear(256, 10)

    def forward(self, x):
        time.sleep(float(SECONDS.read_text()))
        return self.linear(self.relu(self.conv(x)).flatten(1))

def build(num_classes):
    return Slow()
"""


# --- without a cluster ---


def test_without_ray_a_sentence_says_what_to_install(
    run_script: RunScript, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run_script("main.py", "--dataset", "digits", "--output-path", tmp_path, "--ray", "auto")
    assert done.code == 2
    assert done.errors == ["ray (--ray): Ray is not installed; pip install 'ray>=2.49', or leave --ray out"]


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.0 400 Bad Request\r\n\r\n", None], ids=["hangs up", "http", "mute"])
@needs_ray
def test_an_address_without_ray_is_refused_at_once(
    answer: bytes | None, run_script: RunScript, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(joining, "PATIENCE_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if answer is not None:
                    connection.sendall(answer)
                    return
                released.wait(PATIENCE_S)

        released = threading.Event()
        thread = threading.Thread(target=serve)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        done = run_script("main.py", "--dataset", "digits", "--output-path", tmp_path, "--ray", address)
        released.set()
        thread.join()
    (error,) = done.errors
    assert error.startswith(
        f"ray (--ray): expected auto, or HOST:PORT of a Ray cluster that runs (ray start --head), got '{address}' ("
    )


@needs_ray
def test_mistakes_are_told_together(run_script: RunScript, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    done = run_script(
        "main.py", "--dataset", "digits", "--output-path", tmp_path, "--ray", closed, "--device", "cuda:1"
    )
    assert done.code == 2
    refused, device = done.errors
    assert "Connection refused" in refused
    assert device == "device (--device): expected auto, cpu or cuda with ray, got 'cuda:1'"
    done = run_script("main.py", "--dataset", "digits", "--output-path", tmp_path, "--ray", "nowhere")
    assert done.errors == ["ray (--ray): expected auto, or HOST:PORT of a Ray cluster that runs, got 'nowhere'"]


@pytest.mark.parametrize("installed", [True, False])
def test_several_gpus_and_no_ray_are_worth_a_hint(installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if installed else None)
    settings, gpu = Hyperparameters(), torch.device("cuda", 0)
    text = joining.hint(settings, gpu)
    assert text is not None
    assert text.startswith("one of 4 GPUs is used; ")
    assert ("pip install" in text) is not installed
    assert "--ray auto" in text
    assert joining.hint(settings, torch.device("cpu")) is None
    assert joining.hint(Hyperparameters(device="cuda:2"), gpu) is None


# --- what travels ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes", [10, 100_000])
def test_a_parcel_holds_what_was_packed(dtype: torch.dtype, classes: int) -> None:
    layer = Layer(0, "a", 0, "Conv2d", (4,), True, 32)
    index = torch.arange(3).numpy()
    flips = [Flips(layer, index, index, "", seed=1), Flips(layer, index[:1], index[:1], "weight", seed=1)]
    labels = torch.tensor([0, 1, classes - 1])
    batch = BatchOutcomes(labels, flips, 6, lambda count: None)
    batch.clean_top1 = labels.flip(0)
    batch.top1 = torch.stack([labels, labels.flip(0)])
    batch.effects = torch.tensor([[0, 1, 63], [2, 3, 4]], dtype=torch.uint8)
    batch.change = torch.rand(2, 3)
    nan = torch.tensor([float("nan"), -0.0, 1.5], dtype=dtype)
    batch.original, batch.error = [nan, nan[:1]], [-nan, nan[1:2]]
    parcel = Parcel.of(batch, values=True)
    back = parcel.outcomes(flips)
    for name in ("labels", "clean_top1", "top1", "effects", "change"):
        assert torch.equal(getattr(back, name), getattr(batch, name)), name
    for old, new in zip([*batch.original, *batch.error], [*back.original, *back.error], strict=True):
        assert old.dtype == new.dtype
        assert old.view(torch.uint8).tolist() == new.view(torch.uint8).tolist()
    assert Parcel.of(batch, values=False).values.size == 0


@pytest.mark.parametrize(
    ("images", "best", "workers", "expected"),
    [(600, 128, 2, 30), (50_000, 2000, 8, 780), (50_000, 2000, 1000, 10), (7, 128, 2, 10), (50_000, 128, 4, 120)],
)
def test_tasks_are_whole_batches_and_no_larger_than_a_worker_takes(
    images: int, best: int, workers: int, expected: int
) -> None:
    assert shards.together(images, BATCH, best, workers) == expected


@pytest.mark.parametrize(
    ("patterns", "batches", "workers", "expected"),
    [(30, 3, 4, 2), (1, 20, 2, 1), (7, 1, 100, 1), (4, 2, 1, 1), (30, 40, 2, 30)],
)
def test_each_worker_gets_several_parts_of_some_patterns(
    patterns: int, batches: int, workers: int, expected: int
) -> None:
    assert shards.patterns_each(patterns, batches, workers) == expected


@pytest.mark.parametrize(
    ("tasks", "together", "best", "workers", "expected"),
    [(100, 10, 100, 2, 6), (1000, 10, 100, 2, 10), (100, 100, 100, 2, 1), (3, 10, 100, 2, 1), (100, 256, 100, 1, 1)],
)
def test_shards_hold_no_more_than_a_worker_takes(
    tasks: int, together: int, best: int, workers: int, expected: int
) -> None:
    assert shards.tasks_each(tasks, Cut(together, 1), best, workers) == expected


def test_a_worker_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Hyperparameters(dataset="imagenet", input_path=tmp_path / "absent", model_name="resnet18").resolved()
    refusal = Worker(shards.portable(settings, "cpu"), "neuron", 1).load()
    assert isinstance(refusal, Refusal)
    (here,) = refusal.error().problems
    assert here.startswith(f"input_path (--input-path): no ImageNet in {tmp_path / 'absent'}")
    assert here.endswith(f", on node {refusal.node}")
    (elsewhere,) = Refusal("far", refusal.problems).error().problems
    assert elsewhere.endswith(", on node far (every node reads the same paths: use a shared file system)")


def test_a_worker_with_other_files_or_packages_is_told_apart() -> None:
    mine = Facts("a", "cpu", Cut(10, 1), 10, {"the model": "sha256 1", "layers": [1], "torch": "2.6"})
    other = Facts("b", "cpu", Cut(10, 1), 10, {"the model": "sha256 2", "layers": [2], "torch": "2.6"})
    assert mine.differences(mine) == []
    assert other.differences(mine) == ["the model is sha256 2, expected sha256 1", "layers differs"]


def test_paths_travel_as_absolute_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = Hyperparameters(model_name="net.py:build", weights=Path("w.pt"), input_path=Path("in"), ray="auto")
    sent = shards.portable(settings, "cuda")
    assert (sent.model_name, sent.weights) == (f"{tmp_path}/net.py:build", tmp_path / "w.pt")
    assert (sent.input_path, sent.device, sent.ray) == (tmp_path / "in", "cuda", None)


# --- on a cluster of several nodes, on this machine ---


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A Ray cluster: a head without a worker, to which tests add nodes."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    # By default, workers give way to whatever else runs: here, to the other tests.
    os.environ |= {**joining.QUIET, "RAY_worker_niceness": "0"}
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    yield cluster
    cluster.shutdown()  # type: ignore[no-untyped-call]


@pytest.fixture
def two_nodes(nodes: Any) -> Iterator[list[Any]]:
    """Two nodes for one worker each."""
    added = [nodes.add_node(num_cpus=1) for _ in range(2)]
    yield added
    for node in added:
        if node in nodes.list_all_nodes():
            nodes.remove_node(node, allow_graceful=False)


class Slowly:
    """Runs a script on a folder of images with a network that takes its time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(3)
        for label in range(10):
            place = folder / "images" / str(label)
            place.mkdir(parents=True)
            for i in range(20):
                pixels = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8, generator=generator)
                Image.fromarray(pixels.numpy()).save(place / f"{i}.png")
        (folder / "net.py").write_text(SLOW)
        self.hurry()
        weights = {"conv.weight": (4, 3, 3, 3), "conv.bias": (4,), "linear.weight": (10, 256), "linear.bias": (10,)}
        torch.save({k: torch.randn(s, generator=generator) for k, s in weights.items()}, folder / "net.pt")

    def start(self, script: str, output: str, *arguments: str, seconds: float = 0.0) -> subprocess.Popen[str]:
        self._take(seconds)
        command = [sys.executable, str(ROOT / script), "--dataset", "cifar10", "--input-path", "images"]
        command += ["--img-size", "8", "--model-name", "net.py:build", "--weights", "net.pt"]
        command += [] if "--faults" in arguments else ["--seed", "5"]
        command += [
            "--batch-size",
            str(BATCH),
            "--engine",
            "reference",
            "--detailed-log",
            "--fault-table",
            "--no-plots",
        ]
        return subprocess.Popen(
            [*command, "--output-path", output, *arguments],
            cwd=self.folder,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            # What a shell starts in the background ignores Ctrl-C, and so does all that it starts.
            preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
        )

    def hurry(self) -> None:
        """Let the network take no more time."""
        self._take(0.0)

    def _take(self, seconds: float) -> None:
        """Let each pass take so long; one that reads it meanwhile finds a number, and never an empty file."""
        with files.replacing(self.folder / "seconds.txt") as file:
            file.write(str(seconds))

    def alone(self, script: str) -> dict[str, Any]:
        """The files of the run in one process."""
        if not (self.folder / script).exists():
            assert ended(self.start(script, script))[0] == 0
        return self.files(script)

    def saved(self, output: str) -> bool:
        """Whether a run has a checkpoint."""
        return any((self.folder / output).glob("*.unfinished/progress.npz"))

    def files(self, output: str) -> dict[str, Any]:
        """Every file of a run; of the ``.json``, all that may not differ; of the page, which shows that, its name."""
        found: dict[str, Any] = {}
        for path in sorted((self.folder / output).iterdir()):
            found[path.name] = None if path.suffix == ".html" else path.read_bytes()
            if path.suffix == ".json":
                run = json.loads(found[path.name])
                for name in ("started", "ended", "campaign_seconds"):
                    del run[name]
                for name in ("output_path", "ray"):
                    del run["settings"][name]
                found[path.name] = run
        return found


@pytest.fixture(scope="module")
def slowly(tmp_path_factory: pytest.TempPathFactory) -> Slowly:
    return Slowly(tmp_path_factory.mktemp("slowly"))


def test_an_image_that_cannot_be_read_ends_a_shard_with_what_came_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_images, "KEPT_BYTES", 0)  # too many to be decoded at once
    Slowly(tmp_path)
    path = tmp_path / "images" / "1" / "10.png"
    path.write_bytes(path.read_bytes()[:-60])  # its header is whole, so that it shows only when it is decoded
    settings = Hyperparameters(
        dataset="cifar10",
        input_path=tmp_path / "images",
        img_size=8,
        model_name=f"{tmp_path}/net.py:build",
        weights=tmp_path / "net.pt",
        engine="reference",
        batch_size=BATCH,
        seed=5,
    )
    worker = Worker(shards.portable(settings, "cpu"), "neuron", 1)
    assert isinstance(worker.load(), Facts)
    parcels, refusal = worker.run(shards.Shard(Cut(BATCH, 1), 0, (0, 1), 0, 6))
    assert [(parcel.first, parcel.clean.shape[1]) for parcel in parcels] == [(0, BATCH), (BATCH, BATCH)]
    assert refusal is not None
    assert "1/10.png is no readable image" in refusal.problems[0]


def wait_until(true: Callable[[], object], driver: subprocess.Popen[str]) -> None:
    """Wait for something that a driver does while it runs."""
    deadline = time.monotonic() + PATIENCE_S
    while not true():
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code of a process, and what it wrote to stderr."""
    _, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, errors


def actors_of(node: Any) -> list[int]:
    """The processes on a node of the cluster that hold a worker."""
    raylet = node.all_processes["raylet"][0].process.pid
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines()]
    return [int(pid) for pid, parent, name in rows if int(parent) == raylet and name.startswith("ray::Worker")]


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
@needs_ray
def test_a_lost_node_and_a_killed_worker_change_no_byte(
    script: str, slowly: Slowly, nodes: Any, two_nodes: list[Any]
) -> None:
    driver = slowly.start(script, f"ray-{script}", "--ray", nodes.address, seconds=0.1)
    wait_until(lambda: slowly.saved(f"ray-{script}") and all(map(actors_of, two_nodes)), driver)
    for pid in actors_of(two_nodes[0]):
        os.kill(pid, signal.SIGKILL)
    nodes.remove_node(two_nodes[1], allow_graceful=False)
    code, errors = ended(driver)
    assert code == 0, errors
    assert errors.count("ray: lost a worker on node") >= 2
    assert slowly.files(f"ray-{script}") == slowly.alone(script)


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
@needs_ray
def test_a_list_loses_a_worker_and_changes_no_byte(
    script: str, slowly: Slowly, nodes: Any, two_nodes: list[Any]
) -> None:
    saved, alone = f"{script}.csv", f"list-alone-{script}"
    assert ended(slowly.start(script, f"list-sampled-{script}", "--save-faults", saved))[0] == 0
    assert ended(slowly.start(script, alone, "--faults", saved))[0] == 0
    driver = slowly.start(script, f"list-ray-{script}", "--faults", saved, "--ray", nodes.address, seconds=0.1)
    wait_until(lambda: slowly.saved(f"list-ray-{script}") and all(map(actors_of, two_nodes)), driver)
    for pid in actors_of(two_nodes[0]):
        os.kill(pid, signal.SIGKILL)
    slowly.hurry()
    code, errors = ended(driver)
    assert code == 0, errors
    assert "ray: lost a worker on node" in errors
    found = slowly.files(f"list-ray-{script}")
    assert found == slowly.files(alone)
    assert {name.rpartition(".py")[2] for name in found} >= {".csv", "_faults.csv", "_images.csv", "_detailed.txt"}


@needs_ray
def test_a_killed_driver_goes_on_from_its_checkpoint(slowly: Slowly, nodes: Any, two_nodes: list[Any]) -> None:
    driver = slowly.start("weight.py", "driver", "--ray", nodes.address, seconds=0.1)
    wait_until(lambda: slowly.saved("driver"), driver)
    driver.kill()
    assert ended(driver)[0] == -signal.SIGKILL
    code, errors = ended(slowly.start("weight.py", "driver", "--ray", nodes.address))
    assert code == 0, errors
    assert "going on after" in errors
    assert slowly.files("driver") == slowly.alone("weight.py")


@needs_ray
def test_a_cluster_of_its_own_ends_with_the_run(slowly: Slowly, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tempfile.mkdtemp(prefix="bitflip-")  # apart from other clusters here; sockets allow no long path
    monkeypatch.setenv("RAY_TMPDIR", place)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    driver = slowly.start("main.py", "auto", "--ray", "auto", seconds=0.1)
    wait_until(lambda: slowly.saved("auto"), driver)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does
    code, errors = ended(driver)
    assert code == 130, errors
    listed = subprocess.run(["ps", "-eo", "sid="], capture_output=True, text=True, check=True).stdout
    assert str(driver.pid) not in listed.split()
    assert ended(slowly.start("main.py", "auto"))[0] == 0  # in one process, it goes on from there
    assert slowly.files("auto") == slowly.alone("main.py")
    shutil.rmtree(place)


# --- the examples ---


def test_the_kubernetes_example_is_a_ray_job() -> None:
    """Its keys are those of KubeRay's reference; a Kubernetes to try it on is not to be had in a test."""
    import yaml

    job = yaml.safe_load((ROOT / "docs" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["entrypoint"].startswith("python -u /code/main.py --ray auto ")
    cluster = spec["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    for part in (cluster["headGroupSpec"], group):
        (container,) = part["template"]["spec"]["containers"]
        claimed = {volume["name"] for volume in part["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == claimed
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize("example", ["slurm.sh", "rayjob.yaml"])
def test_the_settings_of_the_examples_are_settings(example: str) -> None:
    command = (ROOT / "docs" / example).read_text().partition("main.py ")[2].split("\n  shutdown")[0]
    flags = [word for word in command.split() if word.startswith("--")]
    assert "--ray" in flags
    assert {flag[2:].replace("-", "_") for flag in flags} <= Hyperparameters.model_fields.keys()


def test_the_slurm_example_is_a_script(tmp_path: Path) -> None:
    done = subprocess.run(["bash", "-n", ROOT / "docs" / "slurm.sh"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@needs_ray
def test_bit_error_rates_lose_a_worker_and_change_no_byte(slowly: Slowly, nodes: Any, two_nodes: list[Any]) -> None:
    given = ["--no-detailed-log", "--no-fault-table", "--bit-error-rate", "1e-4,1e-3", "--repeats", "3", "--by-layer"]
    assert ended(slowly.start("weight.py", "rates-alone", *given))[0] == 0
    driver = slowly.start("weight.py", "rates", *given, "--ray", nodes.address, seconds=0.02)
    wait_until(lambda: slowly.saved("rates") and all(map(actors_of, two_nodes)), driver)
    for pid in actors_of(two_nodes[0]):
        os.kill(pid, signal.SIGKILL)
    code, errors = ended(driver)
    assert code == 0, errors
    assert "ray: lost a worker on node" in errors
    assert slowly.files("rates") == slowly.files("rates-alone")
