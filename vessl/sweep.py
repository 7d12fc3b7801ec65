"""Create a sweep over seeds on vessl.ai, with the misclassification rate as its metric.

pip install vessl && vessl configure
python vessl/sweep.py --cluster CLUSTER --preset PRESET --repository github/OWNER/REPOSITORY/COMMIT
python vessl/sweep.py ... --seeds 1-30 --parallel 4 --script weight.py model_name=resnet20 batch_size=64

Each seed is an experiment of its own; `python -m bitflip report FOLDER` joins their result files. Where one machine is
enough, `python main.py --seeds 1-30` does all seeds on one clean pass, which is faster.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

METRIC = "Misclassification_rate"
IMAGE = "pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime"
SCRIPTS = ("main.py", "neuron.py", "weight.py")


def arguments(argv: Sequence[str]) -> argparse.Namespace:
    """What to sweep over, and where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cluster", required=True, help="name of a cluster of your organization")
    parser.add_argument("--preset", required=True, help="name of one of its resource specs")
    parser.add_argument("--repository", required=True, help="the code: github/OWNER/REPOSITORY/COMMIT")
    parser.add_argument("--seeds", default="1-30", help="such as 1-30 or 1,5,9-12 (default: %(default)s)")
    parser.add_argument("--script", default="main.py", choices=SCRIPTS, help="what each experiment runs")
    parser.add_argument("--name", default="bit-flips", help="of the sweep (default: %(default)s)")
    parser.add_argument("--image", default=IMAGE, help="any with Python 3.10 to 3.12 (default: %(default)s)")
    parser.add_argument("--parallel", type=int, default=1, help="experiments at a time (default: %(default)s)")
    parser.add_argument("--organization", help="default: that of `vessl configure`")
    parser.add_argument("--project", help="default: that of `vessl configure`")
    parser.add_argument("hyperparameters", nargs="*", metavar="NAME=VALUE", help="the same for all seeds")
    given = parser.parse_args(argv)
    if bad := [pair for pair in given.hyperparameters if pair.count("=") != 1]:
        parser.error(f"expected NAME=VALUE, got {bad[0]!r}")
    return given


def main(argv: Sequence[str]) -> int:
    """Create the sweep and print its name; the exit code."""
    given = arguments(argv)
    sys.path.append(str(Path(__file__).parents[1]))  # behind the SDK, which has the name of this folder
    from pydantic import ValidationError

    from bitflip.errors import first_line
    from bitflip.settings import hyperparameters
    from bitflip.settings.hyperparameters import Hyperparameters

    try:
        seeds = Hyperparameters(seeds=given.seeds).all_seeds
    except ValidationError as error:
        return _refuse(*hyperparameters.problems(error).values())
    os.environ.setdefault("NO_COLOR", "1")  # else the import queries the terminal
    try:
        vessl: Any = importlib.import_module("vessl")
        name = _create(vessl, given, seeds)
    except Exception as error:  # of many kinds: no SDK, no token, no such cluster, no server
        return _refuse(
            f"vessl: no sweep was created ({type(error).__name__}: {first_line(error)}); pip install vessl && vessl "
            "configure sets up what it takes"
        )
    print(f"sweep {name} over {len(seeds)} seeds")
    return 0


def _refuse(*sentences: str) -> int:
    print(*(f"error: {sentence}" for sentence in sentences), sep="\n", file=sys.stderr)
    return 2


def _create(vessl: Any, given: argparse.Namespace, seeds: Sequence[int]) -> str:
    """Create the sweep; its name."""
    where = {"organization_name": given.organization, "project_name": given.project}
    sweep = vessl.create_sweep(
        name=given.name,
        algorithm="grid",  # each seed once
        parameters=[
            vessl.SweepParameter(
                name="seed", type="int", range=vessl.SweepParameterRange(list=[str(seed) for seed in seeds])
            )
        ],
        objective=vessl.SweepObjective(type="maximize", goal="100", metric=METRIC),  # percent: no seed ends it early
        max_experiment_count=len(seeds),
        parallel_experiment_count=given.parallel,
        max_failed_experiment_count=len(seeds),
        cluster_name=given.cluster,
        resource_spec_name=given.preset,
        image_url=given.image,
        command=f"pip install -r requirements.txt && python {given.script} --detailed-log",
        working_dir="/code",
        git_ref_mounts=[f"/code:{given.repository}"],
        hyperparameters=given.hyperparameters,
        **{name: value for name, value in where.items() if value is not None},
    )
    return str(sweep.name)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
