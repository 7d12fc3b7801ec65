"""How every command ends: with an exit code, and with a sentence for what is no error of the program."""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from types import TracebackType

from bitflip.errors import BadInput, first_line, refuse

INSTALL = "pip install -r requirements.txt"
OURS = ("bitflip", "importlib", "_frozen_importlib")  # code of these is passed over: it only asks for packages


class Exit:
    """The end of a command: what its block raises, if it is no error of the program, is said in a sentence.

    Bad input, too little memory, and packages that are missing or do not fit together end in code 2, Ctrl-C in 130.
    So does SIGTERM, by which schedulers end a job, and some time later kill what is still there. Anything else is
    raised on.

    Args:
        interrupted: what is said after Ctrl-C.

    Attributes:
        code: of the process; 0 unless the block sets another one.
        interrupted: as above; the block may change it as it goes.
        device: whether the command has the setting ``device``, another value of which may have more memory.

    >>> with Exit() as end:
    ...     end.code = 1
    >>> end.code
    1
    """

    def __init__(self, interrupted: str = "interrupted") -> None:
        self.code = 0
        self.interrupted = interrupted
        self.device = True
        self._own = False

    def __enter__(self) -> Exit:
        in_charge = threading.current_thread() is threading.main_thread()
        self._own = in_charge and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        if self._own:
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if self._own:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if isinstance(error, KeyboardInterrupt):
            print(self.interrupted, file=sys.stderr)
            self.code = 130
            return True
        if isinstance(error, Exception):
            mistake = self._mistake(error)
            if mistake is not None:
                self.code = refuse(mistake)
                return True
        return False

    def _mistake(self, error: Exception) -> BadInput | None:
        """What to tell the user, or None for an error of the program."""
        if isinstance(error, BadInput):
            return error
        package = None if isinstance(error, MemoryError) else unimported(error)
        if package is not None:
            return BadInput(
                f"{package} can't be imported ({first_line(error)}); what fits together is installed with: {INSTALL}"
            )
        if not _ran_out(error):
            return None
        setting = "device (--device): " if self.device else ""
        return BadInput(f"{setting}the memory does not suffice for the run ({first_line(error)})")


def _ran_out(error: Exception) -> bool:
    """Whether there was not enough memory; without torch, which is slow to import, only Python itself can say so."""
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules or not isinstance(error, RuntimeError):
        return False
    from bitflip.engines import memory

    return memory.ran_out(error)


def unimported(error: Exception) -> str | None:
    """The package whose import by one of our modules failed with this error, or None if it comes from elsewhere.

    Packages that do not fit together fail in many ways: ``ImportError`` (NumPy's), ``RuntimeError`` (torchvision's),
    ``ValueError``, ``OSError`` (a shared library's). So what counts is where: the first code that is not ours is a
    package's own, as it is being imported.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        name = frame.f_globals.get("__package__") or frame.f_globals.get("__name__")  # the latter of a single file
        package = str(name).partition(".")[0]
        if package not in OURS:
            return package if frame.f_code.co_name == "<module>" else None
    if not isinstance(error, ImportError):
        return None
    missing = (error.name or "").partition(".")[0]  # nothing of it was there to be run
    return missing if missing not in ("", "bitflip") else None
