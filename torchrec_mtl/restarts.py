"""What a restart by torchrun cannot mend is not tried again.

torchrun starts failed ranks again up to ``--max-restarts`` times, whatever they failed of. A rank whose predecessor
ended on a mistake in the config or in the data, or on a loss that is not finite, would read everything once more to say
the same. The standard library alone is imported here, so that ending takes no time.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

_HOPELESS = ("ConfigError: ", "NonFiniteLossError: ")


def end_if_hopeless() -> None:
    """End this rank where one of its node ended in the attempt before on what a restart does not mend."""
    if (path := hopeless(os.environ)) is not None:
        # For the next attempt, and for the summary that torchrun prints at the end.
        shutil.copyfile(path, os.environ["TORCHELASTIC_ERROR_FILE"])
        if (os.environ["TORCHELASTIC_RESTART_COUNT"], os.environ.get("LOCAL_RANK")) == ("1", "0"):
            print("not tried again: a restart does not mend the error above", file=sys.stderr)
        sys.exit(1)


def hopeless(environment: Mapping[str, str]) -> Path | None:
    """Return the file in which a rank of this node left such an error in the attempt before.

    Args:
        environment: of a rank that torchrun started; its files are ``.../attempt_N/LOCAL_RANK/error.json``.
    """
    own, attempt = environment.get("TORCHELASTIC_ERROR_FILE"), environment.get("TORCHELASTIC_RESTART_COUNT", "0")
    if not own or not attempt.isdigit() or attempt == "0":
        return None
    folder = Path(own).parent.parent.parent / f"attempt_{int(attempt) - 1}"
    return next((path for path in sorted(folder.glob("*/error.json")) if _message(path).startswith(_HOPELESS)), None)


def _message(path: Path) -> str:
    try:
        return str(json.loads(path.read_bytes())["message"]["message"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
