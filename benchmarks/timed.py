"""Run main.py or weight.py, and write the processor seconds of its campaign, without loading, to a file.

python benchmarks/timed.py seconds.json main.py --dataset digits --margin 1 --prove
"""

from __future__ import annotations

import json
import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str]) -> None:
    """Run the script with its arguments."""
    file, script, *own = arguments
    sys.path.insert(0, str(ROOT))
    from bitflip.campaign import loop

    execute = loop.execute

    def timed(*given: Any, **named: Any) -> loop.Done:
        began = time.process_time()
        done = execute(*given, **named)
        Path(file).write_text(json.dumps(time.process_time() - began))
        return done

    loop.execute = timed
    sys.argv = [script, *own]
    runpy.run_path(str(ROOT / script), run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
