"""Programs that the machine must have, installed with apt where that is possible."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Iterable

from .errors import MACHINE_LACKS, LabError
from .progress import Progress


def require_program(program: str, package: str, progress: Progress) -> str:
    """Path of `program`; as root, installs `package` (or several, with spaces between them) where
    it is missing, and says so."""
    path = shutil.which(program)
    if path is None:
        _install(program, package, progress)
        path = shutil.which(program)
    if path is None:
        raise LabError(MACHINE_LACKS, f"{package} was installed, but {program} is not to be found")
    return path


def require_files(paths: Iterable[Path], package: str, progress: Progress) -> None:
    """The same for files that are no programs."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        _install(missing[0], package, progress)


def why_missing(program: str, package: str) -> str:
    """Empty if it is there, or would be installed when it is needed."""
    if shutil.which(program) or (os.geteuid() == 0 and shutil.which("apt-get")):
        return ""
    return f"{program} is missing: apt-get install {package}, as root"


def _install(program: str, package: str, progress: Progress) -> None:
    command = ["apt-get", "install", "-y", "--no-install-recommends", *package.split()]
    by_hand = "run: " + ("" if os.geteuid() == 0 else "sudo ") + " ".join(command)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise LabError(MACHINE_LACKS, f"{program} is missing (Debian package {package})", by_hand)
    progress.say(f"{program} is missing: installing the Debian package {package}")
    with progress.stage(f"installing {package}"):
        if not _apt(command):
            # Stale package lists are the usual reason.
            _apt(["apt-get", "update"])
            if not _apt(command):
                raise LabError(MACHINE_LACKS, f"apt cannot install {package}", by_hand)


def _apt(command) -> bool:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    return done.returncode == 0
