"""The package: what it costs to import, what is in its wheel, and that it runs from anywhere."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, FewDigits, RunScript
from packaging.requirements import Requirement

from bitflip import __main__ as program
from bitflip import __version__
from bitflip.cluster import joining

SLOW = {"torch", "torchvision", "numpy", "scipy", "sklearn", "pyarrow", "matplotlib", "PIL", "vessl", "ray"}
COMMANDS = [*program.SCRIPTS, *program.COMMANDS]
OF_A_RUN = {".csv", ".json", ".txt", "_bits.csv"}
EXTRAS = {"ray", "timm", "pandas", "safetensors"}


def python(*arguments: str, folder: Path = ROOT, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a folder."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        capture_output=True,
        text=True,
        timeout=250,
    )


# --- nothing slow before there is something to do ---


def test_importing_the_package_imports_nothing_else() -> None:
    done = python("-c", "import bitflip, sys; print(*sys.modules)")
    assert (done.returncode, done.stderr) == (0, "")
    assert not {name.partition(".")[0] for name in done.stdout.split()} & {*SLOW, "pydantic", "pydantic_settings"}


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_comes_before_anything_slow(command: str) -> None:
    code = (
        "import sys\n"
        "from bitflip.__main__ import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "except SystemExit as exit_:\n"
        "    print(exit_.code, *sys.modules)\n"
    )
    done = python("-c", code, *command.split(), "--help")
    assert (done.returncode, done.stderr) == (0, "")
    text, _, last = done.stdout.strip().rpartition("\n")
    exit_code, *modules = last.split()
    assert exit_code == "0"
    assert not {name.partition(".")[0] for name in modules} & SLOW
    assert re.match(rf"usage: python -m bitflip {command}\s*\[-h\]", text)
    if not command:
        assert all(f"    {name} " in text for name in COMMANDS)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        program.main(["--version"])
    assert (exit_.value.code, capsys.readouterr().out) == (0, f"bitflip {__version__}\n")


@pytest.mark.parametrize("target", program.SCRIPTS)
def test_a_command_is_its_script(
    target: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in taking settings from the environment."""
    few_digits(20)
    flags = ["--dataset=digits", "--layer-num=1", "--detailed-log", "--no-plots", "--output-path"]
    script = run_script(f"{target}.py", *flags, tmp_path / "script", seed="7", bit_flip_pos="1")
    monkeypatch.setenv("seed", "7")
    monkeypatch.setenv("bit_flip_pos", "1")
    assert (script.code, program.main([target, *flags, str(tmp_path / "command")])) == (0, 0)
    names = [path.name for path in (tmp_path / "script").iterdir()]
    assert sorted(names) == sorted(path.name for path in (tmp_path / "command").iterdir())
    assert f"{target}_digits_vgg_digits_7_detailed.txt" in names
    for name in names:
        if not name.endswith(".json"):  # which holds times
            assert (tmp_path / "command" / name).read_bytes() == (tmp_path / "script" / name).read_bytes(), name


@pytest.mark.parametrize("target", program.SCRIPTS)
def test_a_command_reports_mistakes_as_its_script_does(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main([target, "--dataset=digits", "--batch-size=0"]) == 2
    assert (
        capsys.readouterr().err == "error: batch_size (--batch-size): expected a whole number of at least 1, got '0'\n"
    )


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that nothing of an earlier build gets into it, nor into the checkout."""
    assert importlib.util.find_spec("setuptools"), "building takes setuptools: pip install -r requirements-dev.txt"
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "bitflip", source / "bitflip", ignore=shutil.ignore_patterns("__pycache__"))
    pip("wheel", "--no-build-isolation", f"--wheel-dir={built}", str(source))
    (found,) = built.iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with nothing but the installed wheel."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", f"--target={folder}", str(wheel))
    return folder


def pip(command: str, *arguments: str) -> None:
    """Run pip without a network."""
    done = python("-m", "pip", command, "--quiet", "--no-deps", "--no-index", *arguments)
    assert done.returncode == 0, done.stderr


def test_every_file_of_the_package_is_in_the_wheel(wheel: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z", "bitflip"], cwd=ROOT, capture_output=True, text=True, check=True)
    ours = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    assert {"bitflip/data/digits_vgg.pt", "bitflip/report/page.css", "bitflip/__main__.py"} <= ours
    assert ours <= {*zipfile.ZipFile(wheel).namelist()}


def test_what_the_wheel_says_of_itself(installed: Path) -> None:
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    assert (found.name, found.version) == ("bitflip", __version__)
    needed = [Requirement(line) for line in found.requires or ()]
    assert [str(need) for need in needed if "extra" not in str(need.marker)] == [
        str(need) for need in requirements("requirements.txt")
    ]
    assert {*found.metadata.get_all("Provides-Extra", ())} == EXTRAS


@pytest.fixture
def elsewhere(installed: Path, tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A folder that is no checkout, and the environment in which the wheel is all that is installed of the package."""
    return tmp_path, {"PYTHONPATH": str(installed)}


def test_the_wheel_runs_from_another_folder(elsewhere: tuple[Path, dict[str, str]]) -> None:
    folder, environ = elsewhere
    flags = ["--dataset", "digits", "--layer-num", "0,1", "--seed", "3", "--output-path", "out"]
    done = python("-m", "bitflip", "neuron", *flags, folder=folder, **environ)
    assert (done.returncode, done.stderr) == (0, "")
    names = {path.name.removeprefix("neuron_digits_vgg_digits_3") for path in (folder / "out").iterdir()}
    assert names >= {*OF_A_RUN, ".html", "_layers.svg"}


def test_an_installed_package_has_no_commit_of_the_project_around_it(installed: Path, tmp_path: Path) -> None:
    shutil.copytree(installed / "bitflip", tmp_path / "bitflip", ignore=shutil.ignore_patterns("*.pt"))
    say = "from bitflip.results import provenance; print(provenance.git_commit())"
    commit = ["-c", "user.name=x", "-c", "user.email=x", "commit", "--quiet", "--message=x"]
    for command in (["init", "--quiet"], [*commit, "--allow-empty"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert python("-c", say, folder=tmp_path).stdout == "None\n"
    subprocess.run(["git", "add", "bitflip"], cwd=tmp_path, check=True)
    subprocess.run(["git", *commit], cwd=tmp_path, check=True)
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?\n", python("-c", say, folder=tmp_path).stdout)


def test_the_console_command(elsewhere: tuple[Path, dict[str, str]]) -> None:
    folder, environ = elsewhere
    script = str(Path(environ["PYTHONPATH"]) / "bin" / "bitflip")
    done = python(script, "--version", folder=folder, **environ)
    assert (done.returncode, done.stdout) == (0, f"bitflip {__version__}\n")
    done = python(script, "weight", "--help", folder=folder, **environ)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: bitflip weight [-h]")
    done = python(script, "weight", "--seed=x", folder=folder, **environ)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: seed (--seed): expected")


# --- what it needs ---


def requirements(name: str) -> list[Requirement]:
    """The lines of a requirements file, without those that include another one."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    """So what was tried with the constraints was tried with what the requirements allow."""
    oldest = [
        (need.name, need.marker, re.sub("^>=", "==", str(need.specifier))) for need in requirements("requirements.txt")
    ]
    assert oldest == [(one.name, one.marker, str(one.specifier)) for one in requirements("constraints-oldest.txt")]
    assert all(re.fullmatch(r"==[\d.]+", version) for _, _, version in oldest), "one lower bound each, nothing else"


def test_all_that_is_imported_is_required() -> None:
    imported: set[str] = set()
    for path in (ROOT / "bitflip").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                imported.add(str(node.module).partition(".")[0])
    others = imported - sys.stdlib_module_names - {"bitflip"}
    of = importlib.metadata.packages_distributions()
    needed = {need.name for need in requirements("requirements.txt")} | EXTRAS
    assert {"torch", "pydantic"} <= others
    assert {name for name in others if not {one.lower() for one in of.get(name, [name])} & needed} == set()


def test_ray_has_one_lower_bound(installed: Path) -> None:
    (found,) = importlib.metadata.distributions(path=[str(installed)])
    (extra,) = (need for need in map(Requirement, found.requires or ()) if need.name == "ray")
    (tested,) = (need for need in requirements("requirements-dev.txt") if need.name == "ray")
    assert extra.specifier == tested.specifier
    assert f"'{extra.name}{extra.specifier}'" in joining.INSTALL
