"""Debian packages, downloaded with apt and unpacked, never installed.

Three places are asked in turn until one has the package: the machine's package lists as they are;
the machine's sources with lists of our own, freshly updated; and Debian 12's own archive. Lists
of our own live below the cache folder, so neither root nor a change to the machine is needed.
"""

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, List, Optional, Sequence

from .errors import FETCH_FAILED, MACHINE_LACKS, LabError
from .progress import Progress

_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_BOOKWORM = "".join(
    f"deb [arch=amd64 signed-by={_KEYRING}] {where} main\n"
    for where in (
        "http://deb.debian.org/debian bookworm",
        "http://deb.debian.org/debian bookworm-updates",
        "http://deb.debian.org/debian-security bookworm-security",
    )
)


@dataclass(frozen=True)
class Package:
    name: str
    version: str


def newest_image(series: str, show_output: str) -> Optional[Package]:
    """The image on which a kernel meta package depends, if it is one of `series`.

    `show_output` is what `apt-cache show META` prints; its first stanza is apt's candidate.
    """
    stanza = show_output.split("\n\n", 1)[0]
    depends = re.search(r"^Depends:(.*)$", stanza, re.MULTILINE)
    if depends is None:
        return None
    image = re.compile(
        rf"(linux-image-{re.escape(series)}\.[0-9][a-z0-9.+~-]*-amd64) *\(= *([^) ]+) *\)"
    )
    found = image.search(depends.group(1))
    return Package(found.group(1), found.group(2)) if found else None


def candidate_version(show_output: str) -> Optional[str]:
    stanza = show_output.split("\n\n", 1)[0]
    version = re.search(r"^Version: *(\S+)$", stanza, re.MULTILINE)
    return version.group(1) if version else None


class Apt:
    """apt with one set of sources and lists."""

    def __init__(self, what: str, options: Sequence[str] = ()):
        self.what = what
        self._options = list(options)

    def update(self) -> None:
        done = self._run("apt-get", "update")
        if done.returncode != 0:
            raise LabError(FETCH_FAILED, f"apt-get update failed ({self.what}):\n{_tail(done)}")

    def show(self, package: str) -> str:
        """Empty if these lists do not know the package."""
        return self._run("apt-cache", "show", package).stdout

    def download(self, package: Package, folder: Path) -> Path:
        done = self._run("apt-get", "download", f"{package.name}={package.version}", folder=folder)
        files = list(folder.glob(f"{package.name}_*.deb"))
        if done.returncode != 0 or len(files) != 1:
            raise LabError(FETCH_FAILED, f"cannot download {package.name}:\n{_tail(done)}")
        return files[0]

    def _run(self, *command: str, folder: Optional[Path] = None) -> subprocess.CompletedProcess:
        program, *arguments = command
        if shutil.which(program) is None:
            raise LabError(
                MACHINE_LACKS,
                f"{program} is missing: kernels are fetched as Debian packages",
                "run on Debian or Ubuntu, or in a container of theirs",
            )
        return subprocess.run(
            [program, *self._options, *arguments],
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def sources(private: Path, progress: Progress) -> Iterator[Apt]:
    """The places to ask, the cheapest first; `private` is where lists of our own are kept."""
    # The sandbox user of apt may not enter the cache folder of root.
    unsandboxed = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    yield Apt("the machine's package lists", unsandboxed)

    own_lists = unsandboxed + _own_folders(private / "machine")
    yield _updated(Apt("the machine's package sources", own_lists), progress)

    if not Path(_KEYRING).exists():
        raise LabError(
            FETCH_FAILED,
            f"the machine's sources have no such kernel, and {_KEYRING} is missing",
            "install it: apt-get install debian-archive-keyring",
        )
    folder = private / "bookworm"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sources.list").write_text(_BOOKWORM)
    own_sources = [
        *("-o", f"Dir::Etc::sourcelist={folder / 'sources.list'}"),
        *("-o", "Dir::Etc::sourceparts=-"),
        *("-o", "APT::Architecture=amd64"),
    ]
    apt = Apt("Debian 12's archive", unsandboxed + _own_folders(folder) + own_sources)
    yield _updated(apt, progress)


def unpack(deb: Path, folder: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        raise LabError(MACHINE_LACKS, "dpkg-deb is missing", "install it: apt-get install dpkg")
    done = subprocess.run(
        ["dpkg-deb", "-x", str(deb), str(folder)],
        capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise LabError(FETCH_FAILED, f"cannot unpack {deb.name}:\n{_tail(done)}")


def _updated(apt: Apt, progress: Progress) -> Apt:
    with progress.stage(f"updating a private copy of {apt.what}"):
        apt.update()
    return apt


def _own_folders(folder: Path) -> List[str]:
    for part in ("lists/partial", "cache/archives/partial"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    return [
        *("-o", f"Dir::State::lists={folder / 'lists'}"),
        *("-o", f"Dir::Cache={folder / 'cache'}"),
    ]


def _tail(done: subprocess.CompletedProcess) -> str:
    """The errors in what apt and dpkg print, or the last words where nothing is marked so."""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return "\n".join([line for line in lines if line.startswith("E:")] or lines[-5:])
