"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from bitflip.errors import BadInput


def write(path: Path, content: bytes | str) -> None:
    """Write a file beside its place and let it take that place.

    Raises:
        BadInput: if the folder or the disk does not let it; then the file that was there is still there.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".bitflip-", suffix=".tmp")
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # temporary files are private, results are not
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise BadInput(f"{path}: expected a file that can be written ({error.strerror})") from error
    finally:
        if temporary is not None:
            os.unlink(temporary)
