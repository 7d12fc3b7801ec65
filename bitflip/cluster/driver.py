"""A campaign on a Ray cluster: shards of it go to workers, and their outcomes come back in the order of the test set.

Ray starts processes, moves bytes and notices when a machine is gone; what to run again is decided here, since the
driver consumes outcomes in order and must not wait for a worker that nobody can start again.
"""

from __future__ import annotations

import contextlib
import heapq
import logging
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, TypeVar

import torch

from bitflip.campaign.executor import Progress
from bitflip.campaign.experiment import Experiment
from bitflip.cluster import joining, shards
from bitflip.cluster.shards import Facts, Refusal, Shard, Worker
from bitflip.engines.pool import CPU_POOL_BYTES
from bitflip.errors import BadInput, first_line
from bitflip.faults.flips import TargetKind
from bitflip.faults.sampled import Sampling
from bitflip.faults.tasks import Cut, Task
from bitflip.network import devices
from bitflip.network.layers import Target
from bitflip.outcomes.batch import BatchOutcomes
from bitflip.settings.hyperparameters import Hyperparameters

log = logging.getLogger(__name__)

Job = TypeVar("Job")
Answer = tuple[Any, Refusal | None]  # what a worker made of a job, and why it can't go on, if it can't

WAITING_S = 60.0  # without a worker, until a line says so
LOOK_S = 2.0  # between two looks at which nodes there are
UNDER_WAY = 2  # shards that a worker has: one is read while the other one runs
AHEAD = 4  # shards per worker that may be finished or under way beyond the one whose turn it is
LOSSES = 5  # workers that may die over one shard; also, times the workers, deaths in a row with nothing finished
CPU_WORKER_BYTES = 1 << 30  # memory that a worker on CPUs is counted with, beside the pool
NOBODYS = -1  # number of a shard whose outcomes nobody waits for any more


@dataclass(eq=False)
class _Hand:
    """A worker as the driver sees it: its actor, where it is, and what it is at."""

    actor: Any
    node: str
    loading: Any = None  # the reference of its facts, once they are asked for
    facts: Facts | None = None
    jobs: dict[Any, int] = field(default_factory=dict)  # the number of a shard by the reference of its outcomes


class Cluster:
    """Workers on a Ray cluster that is joined, or started on this machine; used as a context.

    Args:
        settings: of the run; ``ray`` is set.
        target: what the flips hit.

    Raises:
        BadInput: if there is no such cluster, or no place for a worker in it.

    Attributes:
        kind: of device that the workers compute on: ``cuda`` or ``cpu``.
    """

    def __init__(self, settings: Hyperparameters, target: TargetKind) -> None:
        ray = self._ray = joining.join(str(settings.ray))
        self._hands: list[_Hand] = []
        self._room: dict[str, int] = {}  # workers that a node has room for
        self._names: dict[str, str] = {}  # of nodes
        self._next_look = 0.0
        self._losses = 0  # of workers, since a shard was last finished
        self._devices: set[str] = set()
        self._expected: Facts | None = None
        try:
            gpus = ray.cluster_resources().get("GPU", 0)
            if settings.device == "cuda" and gpus < 1:
                raise BadInput("device (--device): expected auto or cpu: no node of the Ray cluster has a GPU")
            self.kind = "cuda" if gpus >= 1 and settings.device != "cpu" else "cpu"
            if self.kind == "cpu" and (problems := devices.check_precision(settings.precision, "cpu")):
                raise BadInput(*problems)
            threads = torch.get_num_threads()
            pool = CPU_POOL_BYTES if settings.pool_mib is None else settings.pool_mib << 20
            clean = pool if settings.prove or settings.margin is not None else 0  # for clean passes that are kept
            self._needs = {"CPU": threads, "memory": pool + clean + CPU_WORKER_BYTES}
            if self.kind == "cuda":
                self._needs = {"GPU": 1, "CPU": 1}
            self._arguments: tuple[Any, ...] = (shards.portable(settings, self.kind), target, threads)
            self._look()
            if not self.places:
                raise BadInput(
                    f"ray (--ray): no node of the cluster has {self._needed}, which a worker takes; OMP_NUM_THREADS "
                    "sets its threads, and so its CPUs, pool_mib its memory"
                )
        except BaseException:
            ray.shutdown()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()  # ends the workers, and the cluster if it was started here

    def __str__(self) -> str:
        nodes = len({hand.node for hand in self._hands})
        return f"{len(self._hands)} worker{'s'[: len(self._hands) > 1]} on {nodes} node{'s'[: nodes > 1]}"

    @property
    def device(self) -> str:
        """The workers' devices in words: one, unless nodes differ."""
        return " and ".join(sorted(self._devices))

    @property
    def arithmetic(self) -> str:
        """See :class:`bitflip.campaign.executor.Executor`."""
        return devices.arithmetic(self.kind)

    def meet(self, experiment: Experiment) -> None:
        """Hire workers and wait for the first one to be ready.

        Args:
            experiment: as the driver has loaded it.

        Raises:
            BadInput: if a worker can't load the experiment, or loads another one.
        """
        self._expected = Facts.of(experiment)
        if (protected := experiment.network.protected) is not None:
            self._arguments = (*self._arguments[:3], protected.bounds)
        batches = -(-experiment.images.count // experiment.settings.batch_size)  # more workers would have nothing to do
        late = time.monotonic() + WAITING_S
        while not self._ready:
            self._hire(batches)
            self._attend({})
            if time.monotonic() > late and not self._ready:
                log.warning("ray: no worker is ready yet; each needs %s", self._needed)
                late = float("inf")

    def cut(self, experiment: Experiment) -> Cut:
        """See :class:`bitflip.campaign.executor.Executor`."""
        cuts = [hand.facts.cut for hand in self._ready if hand.facts is not None]
        together, batch_size = min(cut.together for cut in cuts), experiment.settings.batch_size
        if isinstance(experiment.source, Sampling) and experiment.target == "neuron":
            together = shards.together(experiment.images.count, batch_size, together, self.places)
        return Cut(together, min(cut.rows for cut in cuts))

    def run(
        self,
        experiment: Experiment,
        cut: Cut,
        turn: int,
        targets: list[Target],
        start: int,
        progress: Progress,
    ) -> Iterator[tuple[Task, BatchOutcomes]]:
        """See :class:`bitflip.campaign.executor.Executor`.

        Raises:
            BadInput: if an image can't be read, or workers die again and again; what comes before was yielded.
        """
        tasks = experiment.tasks(cut, turn, targets)
        best = min(hand.facts.best for hand in self._ready if hand.facts is not None)
        each = shards.tasks_each(len(tasks) - start, cut, best, self.places)
        places = tuple(experiment.targets.index(item) for item in targets)
        todo = [
            Shard(cut, turn, places, first, min(first + each, len(tasks))) for first in range(start, len(tasks), each)
        ]
        for shard, (parcels, refusal) in self.in_turn(todo, shards.TASKS):
            for task, parcel in zip(tasks[shard.first : shard.stop], parcels, strict=False):  # fewer, if refused
                progress(parcel.top1.size)
                yield task, parcel.outcomes(task.flips)
            if refusal is not None:
                raise refusal.error()

    def in_turn(self, todo: Sequence[Job], method: str) -> Iterator[tuple[Job, Answer]]:
        """Have workers do jobs, and give each with what came of it, in their order.

        Args:
            todo: the jobs, which say in words what they are.
            method: of :class:`bitflip.cluster.shards.Worker`, that does one.

        Raises:
            BadInput: if workers die again and again; what comes before was yielded.
        """
        waiting = list(range(len(todo)))  # a heap
        finished: dict[int, Answer] = {}
        died: Counter[int] = Counter()
        try:
            for number, job in enumerate(todo):
                while number not in finished:
                    self._hire(len(todo) - number)
                    self._hand_out(todo, method, waiting, number)
                    for lost in self._attend(finished):
                        died[lost] += 1
                        heapq.heappush(waiting, lost)
                    if died[number] >= LOSSES:
                        raise BadInput(
                            f"ray (--ray): {LOSSES} workers died over {job}; what was finished before is kept, and "
                            "a smaller batch_size or pool_mib needs less memory"
                        )
                yield job, finished.pop(number)
        finally:
            for hand in self._hands:
                hand.jobs = dict.fromkeys(hand.jobs, NOBODYS)

    @property
    def places(self) -> int:
        """Workers that the cluster has room for."""
        return sum(self._room.values())

    @property
    def _needed(self) -> str:
        """What a worker takes, in words."""
        if self.kind == "cuda":
            return "a GPU and a CPU"
        cpus = "a CPU" if self._needs["CPU"] == 1 else f"{self._needs['CPU']} CPUs"
        return f"{cpus} and {self._needs['memory'] / 2**30:.1f} GiB of memory"

    @property
    def _ready(self) -> list[_Hand]:
        return [hand for hand in self._hands if hand.facts is not None]

    def _look(self) -> None:
        """See which nodes there are."""
        self._next_look = time.monotonic() + LOOK_S
        nodes = {node["NodeID"]: node for node in self._ray.nodes() if node["Alive"]}
        self._names |= {name: node["NodeManagerHostname"] for name, node in nodes.items()}
        self._room = {
            name: int(min(node["Resources"].get(kind, 0) // amount for kind, amount in self._needs.items()))
            for name, node in nodes.items()
        }

    def _hire(self, most: int) -> None:
        """Let each node have as many workers as it has room for, ``most`` in all, and let them load."""
        if time.monotonic() >= self._next_look:
            self._look()
        staff = Counter(hand.node for hand in self._hands)
        for place in range(max(self._room.values(), default=0)):  # all nodes' first places, all nodes' second ones, ...
            for node, room in self._room.items():
                if staff[node] <= place < room and len(self._hands) < most:
                    self._hands.append(_Hand(self._actor(node), node))
                    staff[node] += 1
        for node in staff:
            here = [hand for hand in self._hands if hand.node == node and hand.facts is None]
            first_here = not any(hand.node == node for hand in self._ready)
            for hand in here[:1] if first_here else here:  # the first one on a machine may have to download
                hand.loading = hand.loading or hand.actor.load.remote()

    def _actor(self, node: str) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options = {
            "num_cpus": self._needs["CPU"],
            "num_gpus": self._needs.get("GPU", 0),
            "memory": self._needs.get("memory"),
            "max_concurrency": UNDER_WAY,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        return self._ray.remote(Worker).options(**options).remote(*self._arguments)

    def _hand_out(self, todo: Sequence[Job], method: str, waiting: list[int], turn_of: int) -> None:
        """Give workers shards, but none so far ahead of the one whose turn it is that finished ones pile up."""
        end = turn_of + AHEAD * len(self._ready)
        for under_way in range(UNDER_WAY):  # one each before anybody gets a second one
            for hand in self._ready:
                if waiting and waiting[0] < end and len(hand.jobs) == under_way:
                    number = heapq.heappop(waiting)
                    hand.jobs[getattr(hand.actor, method).remote(todo[number])] = number

    def _attend(self, finished: dict[int, Answer]) -> list[int]:
        """Wait a moment for workers, take what they finished, and return the numbers of the shards that were lost."""
        exceptions = self._ray.exceptions
        hand_of = {ref: hand for hand in self._hands for ref in [*hand.jobs, hand.loading] if ref is not None}
        if not hand_of:
            time.sleep(0.1)
            return []
        lost: list[int] = []
        some, rest = self._ray.wait(list(hand_of), timeout=1.0)
        more, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0) if some and rest else ([], [])
        for ref in some + more:
            hand = hand_of[ref]
            if hand not in self._hands:  # lost by another of its references
                continue
            try:
                answer = self._ray.get(ref)
            except exceptions.RayTaskError:  # an error of the program, or out of memory
                raise
            except exceptions.RayError as error:
                lost += self._lose(hand, error)
                continue
            if ref is hand.loading:
                hand.loading = None
                self._met(hand, answer)
            elif (number := hand.jobs.pop(ref)) != NOBODYS:
                finished[number] = answer
                self._losses = 0
        return lost

    def _met(self, hand: _Hand, found: Facts | Refusal) -> None:
        if isinstance(found, Refusal):
            raise found.error()
        assert self._expected is not None
        if differences := found.differences(self._expected):
            raise BadInput(
                f"ray (--ray): node {found.node} would not give the same results: {', '.join(differences)}; all nodes "
                "need the same files and the same packages"
            )
        hand.facts = found
        self._devices.add(found.device)

    def _lose(self, hand: _Hand, error: Exception) -> list[int]:
        """Do without a worker; the numbers of its shards."""
        self._hands.remove(hand)
        with contextlib.suppress(Exception):  # it is dead, or as good as dead
            self._ray.kill(hand.actor)
        self._next_look = 0.0
        self._losses += 1
        name, numbers = self._names.get(hand.node, hand.node), [n for n in hand.jobs.values() if n != NOBODYS]
        if self._losses > LOSSES * max(1, self.places, len(numbers)):
            raise BadInput(f"ray (--ray): workers die without finishing anything, the last one on node {name}: {error}")
        reason = textwrap.shorten(first_line(error), 100)
        log.warning("ray: lost a worker on node %s (%s); others take over", name, reason)
        return numbers
