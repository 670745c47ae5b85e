"""Debian packages, downloaded with apt and unpacked, never installed.

Up to three places are asked in turn until one has the package: the machine's package lists as they
are; the machine's sources with lists of our own, freshly updated; and Debian's own archive. The
first two are left out where a package for another processor or from another suite is wanted. Lists
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
_BOOKWORM = (
    "http://deb.debian.org/debian bookworm",
    "http://deb.debian.org/debian bookworm-updates",
    "http://deb.debian.org/debian-security bookworm-security",
)
_ARCHIVES = {
    "bookworm": _BOOKWORM,
    "bookworm-backports": (*_BOOKWORM, "http://deb.debian.org/debian bookworm-backports"),
    "unstable": ("http://deb.debian.org/debian unstable",),
}


@dataclass(frozen=True)
class Package:
    name: str
    version: str


def newest_image(
    series: Optional[str], architecture: str, show_output: str
) -> Optional[Package]:
    """The image on which a kernel meta package depends, if it is one of `series` (None: of any).

    `show_output` is what `apt-cache show META` prints; its first stanza is apt's candidate.
    """
    wanted = r"[0-9]+\.[0-9]+" if series is None else re.escape(series)
    name = re.compile(rf"linux-image-{wanted}\.[0-9][a-z0-9.+~-]*-{architecture}")
    images = (one for one in _exact_dependencies(show_output) if name.fullmatch(one.name))
    return next(images, None)


def parts_of(image: Package, show_output: str) -> List[Package]:
    """The packages that hold the files of `image`: itself, or those into which newer kernels are
    divided (linux-binary-, linux-modules- and linux-base- of the same release)."""
    release = image.name[len("linux-image-"):]
    names = {f"linux-{part}-{release}" for part in ("binary", "modules", "base")}
    parts = [one for one in _exact_dependencies(show_output) if one.name in names]
    return parts if any(one.name.startswith("linux-binary-") for one in parts) else [image]


def series_of(image: Package) -> str:
    """`7.2` of linux-image-7.2.13+deb14-cloud-amd64."""
    return ".".join(image.name[len("linux-image-"):].split(".")[:2])


def _exact_dependencies(show_output: str) -> Iterator[Package]:
    """Those with `(= version)` of apt's candidate."""
    depends = re.search(r"^Depends:(.*)$", show_output.split("\n\n", 1)[0], re.MULTILINE)
    if depends is not None:
        for name, version in re.findall(r"([a-z0-9.+-]+) *\(= *([^) ]+) *\)", depends.group(1)):
            yield Package(name, version)


def candidate_version(show_output: str) -> Optional[str]:
    stanza = show_output.split("\n\n", 1)[0]
    version = re.search(r"^Version: *(\S+)$", stanza, re.MULTILINE)
    return version.group(1) if version else None


def installations_in(simulation: str) -> List[Package]:
    """What `apt-get install --simulate` would install or upgrade."""
    lines = re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+)", simulation, re.MULTILINE)
    return [Package(name, version) for name, version in lines]


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

    def download(self, packages: Sequence[Package], folder: Path) -> List[Path]:
        """Into `folder`, where no other version of them may lie; in the order of `packages`."""
        names = [f"{package.name}={package.version}" for package in packages]
        done = self._run("apt-get", "download", *names, folder=folder)
        found = [list(folder.glob(f"{package.name}_*.deb")) for package in packages]
        missing = [package.name for package, files in zip(packages, found) if len(files) != 1]
        if done.returncode != 0 or missing:
            what = ", ".join(missing or names)
            raise LabError(FETCH_FAILED, f"cannot download {what}:\n{_tail(done)}")
        return [files[0] for files in found]

    def closure(self, package: str, suite: str) -> List[Package]:
        """`package` of `suite` and all that it needs, down to libc."""
        done = self._run(
            *("apt-get", "-o", "Dir::State::status=/dev/null", "install", "--simulate"),
            *("--no-install-recommends", "-t", suite, package),
        )
        if done.returncode != 0:
            raise LabError(FETCH_FAILED, f"{package} of {suite} does not fit here:\n{_tail(done)}")
        return installations_in(done.stdout)

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


def sources(suite: str, architecture: str, private: Path, progress: Progress) -> Iterator[Apt]:
    """The places to ask, the cheapest first; `private` is where lists of our own are kept."""
    if suite == "bookworm" and architecture == own_architecture():
        yield Apt("the machine's package lists", _unsandboxed())
        options = [*_unsandboxed(), *_own_folders(private / "machine")]
        yield _updated(Apt("the machine's package sources", options), progress)
    yield archive(suite, architecture, private, progress)


def archive(suite: str, architecture: str, private: Path, progress: Progress) -> Apt:
    """Debian's own archive, with a configuration of its own: nothing of the machine's is used but
    what dpkg knows to be installed."""
    what = f"Debian's archive ({suite}, {architecture})"
    if not Path(_KEYRING).exists():
        raise LabError(
            FETCH_FAILED,
            f"{what} cannot be trusted without {_KEYRING}",
            "install it: apt-get install debian-archive-keyring",
        )
    folder = private / f"{suite}-{architecture}"
    folder.mkdir(parents=True, exist_ok=True)
    entry = f"deb [arch={architecture} signed-by={_KEYRING}] {{}} main\n"
    (folder / "sources.list").write_text("".join(map(entry.format, _ARCHIVES[suite])))
    options = [
        *_unsandboxed(),
        *_own_folders(folder),
        *("-o", f"Dir::Etc::sourcelist={folder / 'sources.list'}"),
        *("-o", "Dir::Etc::sourceparts=-"),
        *("-o", "Dir::Etc::preferences=-", "-o", "Dir::Etc::preferencesparts=-"),
        *("-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures={architecture}"),
        *("-o", "Acquire::Languages=none"),
    ]
    return _updated(Apt(what, options), progress)


def _unsandboxed() -> List[str]:
    """The sandbox user of apt may not enter the cache folder of root."""
    return ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []


def own_architecture() -> str:
    """As dpkg calls it; empty where there is no dpkg."""
    return _dpkg("dpkg", "--print-architecture").strip()


def is_installed(package: str) -> bool:
    return _dpkg("dpkg-query", "-W", "-f=${db:Status-Status}", package).startswith("installed")


def _dpkg(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout if done.returncode == 0 else ""


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
