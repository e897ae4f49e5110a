"""The first moments of a job: the process claims its folder, then becomes the command.

`python -m luthier.runs.begin FOLDER COMMAND...`. Whoever starts a job may be killed before it has written down which
process it started, and start the job again. So the process itself says who it is, in a file that can be made once:
of two processes that were started for one job, one runs and the other one leaves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from luthier.core.faults import fault_point
from luthier.core.paths import beside
from luthier.runs.process import Identity

CLAIM = "process.json"
"""File of a job's folder that says which process does it."""
TAKEN = 75
"""Exit code of a process that came second."""


def claim(folder: Path) -> bool:
    """Write the identity of this process into `folder`; False where another one has done so."""
    temporary = beside(folder / CLAIM)
    temporary.write_text(json.dumps(Identity.here().as_dict()), encoding="utf-8")
    try:
        os.link(temporary, folder / CLAIM)  # whole, and only where there is none
    except FileExistsError:
        return False
    finally:
        temporary.unlink()
    return True


def main() -> None:
    """Claim the folder, and become the command."""
    folder, command = Path(sys.argv[1]), sys.argv[2:]
    fault_point("job.claim")
    if not claim(folder):
        sys.exit(TAKEN)
    fault_point("job.claimed")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and a command would inherit that
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
