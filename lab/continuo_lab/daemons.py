"""Daemons of Debian 12 that tests and comparisons run, unpacked into the cache, never installed."""

import tempfile
from pathlib import Path

from .cache import cache_root
from .errors import FETCH_FAILED, LabError
from .packages import Package, candidate_version, own_architecture, sources, unpack
from .progress import Progress


def fetched(package: str, progress: Progress) -> Path:
    """The folder that a package of Debian 12 is unpacked in."""
    shelf = cache_root() / "daemons"
    shelf.mkdir(parents=True, exist_ok=True)
    found = sorted(shelf.glob(f"{package}_*"))
    if found:
        return found[-1]
    reasons = []
    for apt in sources("bookworm", own_architecture(), cache_root() / "apt", progress):
        version = candidate_version(apt.show(package))
        if version is None:
            reasons.append(f"{apt.what}: no {package}")
            continue
        try:
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=shelf) as scratch:
                tree = Path(scratch, "tree")
                tree.mkdir()
                (deb,) = apt.download([Package(package, version)], Path(scratch))
                unpack(deb, tree)
                final = shelf / f"{package}_{version.replace(':', '%3A')}"
                tree.rename(final)
                return final
        except LabError as why:  # stale lists, most often: the next place is newer
            reasons.append(f"{apt.what}: {why}")
    raise LabError(FETCH_FAILED, "\n".join(reasons))
