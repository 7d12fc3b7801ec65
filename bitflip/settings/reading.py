"""Reading hyperparameters: defaults, overridden by environment variables, overridden by the command line.

This module imports nothing slow, so that ``--help`` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from bitflip.errors import BadInput, nearest
from bitflip.settings import hyperparameters
from bitflip.settings.hyperparameters import Hyperparameters, role_of

ALIASES = {"layer_nums": "layer_num"}
NEARLY = 0.85  # alike, from 0 to 1, as difflib has it


class _Sources(Hyperparameters, BaseSettings):
    __doc__ = Hyperparameters.__doc__  # which --help shows

    model_config = SettingsConfigDict(
        env_ignore_empty=True,
        case_sensitive=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
    )


def _plain(sources: _Sources) -> Hyperparameters:
    """The values alone, with those filled in that depend on others."""
    return Hyperparameters.model_construct(**dict(sources)).resolved()


class _Help(argparse.HelpFormatter):
    """Names each flag's environment variable beside its default."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = (action.help or "").replace(" (default: None)", "")
        if not action.option_strings or action.dest == "help":
            return text
        variables = [flag[2:].replace("-", "_") for flag in action.option_strings if not flag.startswith("--no-")]
        return f"{text} [variable: {', '.join(variables)}]"


def read(argv: Sequence[str], prog: str | None = None) -> tuple[Hyperparameters, dict[str, str]]:
    """Read the settings from the environment and ``argv``.

    Returns:
        The settings, and one sentence per setting that has a bad value, by its name, and per unknown flag. A bad
        value is replaced by the default, so that the caller can look for further mistakes before reporting all.

    Raises:
        SystemExit: for ``--help`` (code 0).
        BadInput: if a flag has no value.
    """
    flags = _flags(argv)
    given, unknown = _given(flags, prog)
    problems = _unknown(unknown)
    if len([name for name in ("seed", "seeds") if given.get(name) or os.environ.get(name)]) == 2:
        problems["seeds"] = "seeds (--seeds): expected either seed or seeds, got both"
    given_names = {flag.partition("=")[0] for flag in flags} & {"--layer-num", "--layer-nums"}
    if len(given_names or [name for name in ("layer_num", "layer_nums") if os.environ.get(name)]) == 2:
        problems["layer_num"] = "layer_num (--layer-num): expected either layer_num or layer_nums, got both"
    if rerun := given.get("rerun") or os.environ.get("rerun"):  # noqa: SIM112
        earlier, problem = _earlier(Path(str(rerun)))
        given = {**earlier, **given}
        problems |= {"rerun": problem} if problem else {}
    try:
        return _plain(_Sources(**given)), problems
    except ValidationError as error:
        problems |= hyperparameters.problems(error)
    defaults = {name: field.default for name, field in Hyperparameters.model_fields.items() if name in problems}
    return _plain(_Sources(**{**given, **defaults})), problems


def from_environment(argv: Sequence[str]) -> list[str]:
    """The settings that :func:`read` takes from the environment, by name."""
    given, _ = _given(_flags(argv))
    if rerun := given.get("rerun") or os.environ.get("rerun"):  # noqa: SIM112
        given = {**_earlier(Path(str(rerun)))[0], **given}
    there = {ALIASES.get(name, name) for name, value in os.environ.items() if value}
    return [name for name in Hyperparameters.model_fields if name in there and name not in given]


def nearly_settings(environ: Mapping[str, str] = os.environ) -> list[str]:
    """One sentence for each environment variable that is nearly the name of a setting, and so is none.

    >>> nearly_settings({"bitflippos": "1", "PATH": "/bin", "seed": "3"})
    ['environment variable bitflippos: it is no setting, and is not read; did you mean bit_flip_pos?']
    """
    names = {_bare(name): name for name in (*Hyperparameters.model_fields, *ALIASES)}
    found = []
    for variable in sorted(name for name, value in environ.items() if value and name not in names.values()):
        close = difflib.get_close_matches(_bare(variable), names, n=1, cutoff=NEARLY)
        if close:
            found.append(
                f"environment variable {variable}: it is no setting, and is not read; did you mean {names[close[0]]}?"
            )
    return found


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def add_flags(parser: argparse.ArgumentParser, without: Container[str], **texts: str) -> None:
    """Give a command the settings as flags, to be read by :func:`flags_of`.

    Args:
        parser: of the command.
        without: names of settings that mean nothing to it.
        texts: what the help says of settings that mean something else to it, by name.
    """
    for name, setting in Hyperparameters.model_fields.items():
        if name in without:
            continue
        flag = f"--{name.replace('_', '-')}"
        text = texts.get(name, setting.description or "").replace("%", "%%")
        if setting.annotation is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument(flag, metavar="VALUE", help=text)


def flags_of(arguments: argparse.Namespace) -> list[str]:
    """The flags of :func:`add_flags` that were given, as a script takes them."""
    flags = []
    for name in Hyperparameters.model_fields:
        value = getattr(arguments, name, None)
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{'' if value else 'no-'}{flag}")
        elif value is not None:
            flags.append(f"--{flag}={value}")
    return flags


def _flags(argv: Sequence[str]) -> list[str]:
    """The command line as the parser knows it."""
    return [_flag(re.sub(r"^--[a-z_-]+", lambda m: m[0].replace("_", "-"), arg)) for arg in argv]


def _given(flags: Sequence[str], prog: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """The values that flags give, by name, and what is no flag or value; errors as :func:`read` raises them."""
    source: CliSettingsSource[Any] = CliSettingsSource(
        _Sources, cli_prog_name=prog, cli_exit_on_error=False, formatter_class=_Help
    )
    try:
        known, unknown = source.root_parser.parse_known_args(flags)
    except SettingsError as error:  # argparse's words: "argument --seed: expected one argument"
        raise BadInput(f"{str(error).rpartition('error parsing CLI: ')[2]}; --help lists all flags") from error
    return source(parsed_args=known)(), unknown


def _earlier(path: Path) -> tuple[dict[str, Any], str | None]:
    """The settings of an earlier run, and one sentence if its file is none."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["settings"]
        return {k: v for k, v in settings.items() if k in Hyperparameters.model_fields and role_of(k).rerun}, None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no such file, or damaged"
        return {}, f"rerun (--rerun): expected the .json of an earlier run, got {path} ({reason})"


def _flag(argument: str) -> str:
    """A switch given as ``--drop-last=true``, as a sweep may write it, as ``--drop-last``."""
    name, _, value = argument.partition("=")
    field = Hyperparameters.model_fields.get(name[2:].replace("-", "_"))
    if field is None or field.annotation is not bool:
        return argument
    if value.lower() in ("true", "on", "yes", "1"):
        return name
    return f"--no-{name[2:]}" if value.lower() in ("false", "off", "no", "0") else argument


def _unknown(arguments: Sequence[str]) -> dict[str, str]:
    """One sentence per argument that is no flag, nor the value of an unknown one."""
    valid = [f"--{name.replace('_', '-')}" for name in Hyperparameters.model_fields]
    problems = {}
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag = argument.partition("=")[0]
        if flag.startswith("-"):
            problems[flag] = f"{flag}: unknown flag; {nearest(flag, valid)}"
        elif not before.startswith("-") or "=" in before:
            problems[argument] = f"{argument!r}: expected flags and their values only; --help lists all flags"
    return problems
