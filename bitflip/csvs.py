"""CSV files read back: header and rows, and cells as values, or as sentences on what is wrong with them."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO, TypeVar

from bitflip.errors import BadInput

T = TypeVar("T")


class BadRow(Exception):
    """What is wrong with a row; a sentence for each column."""


_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # how texts begin that a spreadsheet would run, shielded or not


class Writer:
    """Writes rows whose texts no spreadsheet takes for formulas, with an apostrophe in front; :class:`Row` drops it.

    Args:
        file: to write to.
    """

    def __init__(self, file: TextIO) -> None:
        self._writer = csv.writer(_Lines(file), lineterminator=_Lines.END)

    def writerow(self, cells: Iterable[object]) -> None:
        """Write a row."""
        self._writer.writerow([_shielded(cell) if isinstance(cell, str) else cell for cell in cells])


class _Lines:
    """A file that takes rows that end in CR LF, so that cells with either are quoted, and ends its lines in LF."""

    END = "\r\n"

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, row: str) -> None:
        self._file.write(row.removesuffix(self.END) + "\n")


def _shielded(text: str) -> str:
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


class Row:
    """The cells of a row by column, read as values; what is wrong with them is collected.

    Attributes:
        cells: texts by column.
        wrong: sentences.
    """

    def __init__(self, cells: dict[str, str]) -> None:
        shielded = {column for column, text in cells.items() if text[:1] == "'" and _FORMULA.match(text)}
        self.cells = {column: text[column in shielded :] for column, text in cells.items()}
        self.wrong: list[str] = []

    def __contains__(self, column: str) -> bool:
        return column in self.cells

    def __getitem__(self, column: str) -> str:
        return self.cells[column]

    def get(self, column: str) -> str:
        """The text of a cell; empty if there is no such column."""
        return self.cells.get(column, "")

    def name(self, column: str) -> str:
        """A text that is not empty."""
        if not self[column]:
            self.wrong.append(f"{column}: expected a name, got nothing")
        return self[column]

    def count(self, column: str, most: int | None = None) -> int:
        """A whole number from 0."""
        value = whole(self[column])
        if value is None or (most is not None and value > most):
            return self.unlike(column, "a whole number from 0" + ("" if most is None else f" to {most}"), 0)
        return value

    def number(self, column: str, most: float) -> float | None:
        """A number from 0; None of an empty cell, or without the column."""
        if not self.get(column):
            return None
        try:
            value = float(self[column])
        except ValueError:
            value = -1
        return value if 0 <= value <= most else self.unlike(column, f"a number from 0 to {most:g}", 0)

    def unlike(self, column: str, expected: str, instead: T) -> T:
        """Note that a cell is not what is expected, and go on with something instead."""
        self.wrong.append(f"{column}: expected {expected}, got {self[column][:40]!r}")
        return instead

    def finish(self) -> None:
        """See that nothing was wrong.

        Raises:
            BadRow: with all sentences.
        """
        if self.wrong:
            raise BadRow(*self.wrong)


_WHOLE = re.compile(r"[0-9]{1,15}", re.ASCII)  # larger ones are damage


def whole(text: str) -> int | None:
    """The whole number from 0 that a text is; None if it is none."""
    return int(text) if _WHOLE.fullmatch(text) else None


class Table:
    """A CSV file, whose rows can be read once.

    Args:
        path: of the file.
        setting: that names the file, for messages.
        ended: whether its last line must have an end, as all that a run writes has; without one it is cut off.

    Raises:
        BadInput: if the file can't be read, or is no text.
    """

    def __init__(self, path: Path, setting: str = "", *, ended: bool = False) -> None:
        self.where = f"{setting}: {path}" if setting else str(path)
        content = text(path, setting)
        if ended and content and not content.endswith("\n"):
            raise BadInput(f"{self.where}: expected a whole file, its last line is cut off")
        self._reader = csv.reader(io.StringIO(content, newline=""), strict=True)
        self.header = tuple(next(self._lines(), []))

    @property
    def got(self) -> str:
        """The header, for messages."""
        return repr(",".join(self.header)[:200]) if self.header else "an empty file"

    def require(self, needed: Sequence[str], known: Sequence[str] = ()) -> None:
        """See that columns are there, none twice, and none under a name that was damaged.

        Args:
            needed: columns without which the file is something else.
            known: all that are known; an earlier version's file has fewer, and a later version's has others, too.

        Raises:
            BadInput: that names what is missing.
        """
        missing = [name for name in needed if name not in self.header]
        strange = [name for name in self.header if name not in known]
        for name in (name for name in known if name not in self.header):
            missing += [name] if difflib.get_close_matches(name, strange, cutoff=0.75) else []
        if missing:
            expected = f"expected the header {','.join(known or needed)}"
            raise BadInput(f"{self.where}: {expected}, {missing[0]} is missing, got {self.got}")
        if len(set(self.header)) != len(self.header):
            raise BadInput(f"{self.where}: expected columns of different names, got {self.got}")

    def values(
        self, parse: Callable[[Row], T], problems: list[tuple[int, str]] | None = None
    ) -> Iterator[tuple[int, T]]:
        """Line and value of each row that is not empty.

        Args:
            parse: reads a row; raises :class:`BadRow` if it can't.
            problems: takes the line and a sentence for whatever is wrong; None: the first row that is wrong is raised.

        Raises:
            BadInput: if the file is no CSV, or for a row that is wrong.
        """
        for cells in self._lines():
            line = self._reader.line_num
            try:
                if len(cells) != len(self.header):
                    raise BadRow(f"expected {len(self.header)} columns, got {len(cells)}")
                value = parse(Row(dict(zip(self.header, cells, strict=True))))
            except BadRow as error:
                if problems is None:
                    raise BadInput(*(f"{self.where}, line {line}: {sentence}" for sentence in error.args)) from None
                problems += [(line, sentence) for sentence in error.args]
            else:
                yield line, value

    def _lines(self) -> Iterator[list[str]]:
        try:
            yield from filter(None, self._reader)
        except csv.Error as error:
            raise BadInput(f"{self.where}, line {self._reader.line_num}: {error}") from error


def text(path: Path, setting: str = "") -> str:
    """The content of a text file.

    Args:
        path: of the file.
        setting: that names it, for messages.

    Raises:
        BadInput: if the file can't be read, or is no text.
    """
    where = f"{setting}: {path}" if setting else str(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BadInput(f"{where} can't be read ({error.strerror})") from error
    try:
        found, wrong, at = data.decode("utf-8-sig"), "a NUL byte", data.find(b"\0")
    except UnicodeDecodeError as error:
        found, wrong, at = "", "bytes that are not UTF-8", error.start
    if at >= 0:
        line = data.count(b"\n", 0, at) + 1
        raise BadInput(f"{where}: expected text, got {wrong} in line {line}")
    return found
