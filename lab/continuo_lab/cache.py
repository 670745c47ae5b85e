"""Kernels that were fetched: each a folder that holds what booting needs and nothing else.

    <cache>/x86-svm/6.12 -> linux-image-6.12.117+deb12-cloud-amd64_6.12.117-1~deb12u1.r1
    <cache>/x86-svm/linux-image-…/{vmlinuz, config, base.cpio, manifest.json}

A folder appears under its name by one rename when it is complete, and the series' link is moved
by another, so a reader needs no lock. Writers hold one.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Iterator, Optional, Tuple

from .base_image import RECIPE, write_base
from .catalog import Host, Kernel
from .errors import FETCH_FAILED, LabError
from .modules import ModuleTree
from .packages import Apt, Package, newest_image, sources, unpack
from .progress import Progress


@dataclass(frozen=True)
class Manifest:
    recipe: int
    package: str
    version: str
    release: str  # as uname -r prints it
    modules: Tuple[str, ...]


@dataclass(frozen=True)
class CachedKernel:
    folder: Path
    manifest: Manifest

    @property
    def vmlinuz(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def base_cpio(self) -> Path:
        return self.folder / "base.cpio"


class Unsuitable(Exception):
    """The package lacks something that the host needs."""


def cache_root() -> Path:
    own = os.environ.get("CONTINUO_LAB_CACHE")
    if own:
        return Path(own).absolute()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home).absolute() / "continuo" / "lab"


class Cache:
    def __init__(self, root: Path, progress: Progress):
        self.root = root
        self._progress = progress

    def find(self, host: Host, kernel: Kernel) -> Optional[CachedKernel]:
        """None where it was not fetched, or by a version of the tool that made it otherwise."""
        with contextlib.suppress(OSError, ValueError, TypeError):
            folder = (self.root / host.name / kernel.series).resolve(strict=True)
            fields = json.loads((folder / "manifest.json").read_text())
            manifest = Manifest(**{**fields, "modules": tuple(fields["modules"])})
            if manifest.recipe == RECIPE:
                return CachedKernel(folder, manifest)
        return None

    def find_or_fetch(self, host: Host, kernel: Kernel) -> CachedKernel:
        found = self.find(host, kernel)
        if found is not None:
            return found
        with self._lock():
            return self.find(host, kernel) or self._fetch(host, kernel)

    def fetch_newest(self, host: Host, kernel: Kernel) -> CachedKernel:
        """Asks apt for the newest version even if an older one is cached."""
        with self._lock():
            return self._fetch(host, kernel)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = open(self.root / "lock", "w", encoding="ascii")
        except OSError as error:
            raise LabError(
                FETCH_FAILED,
                f"cannot write to the cache folder: {error}",
                "choose another: CONTINUO_LAB_CACHE=/some/folder continuo-lab ...",
            ) from error
        with lock:
            with self._progress.stage("waiting for another continuo-lab that fetches"):
                fcntl.flock(lock, fcntl.LOCK_EX)
            for left_over in self.root.glob("*/.partial-*"):  # of a fetch that was killed
                shutil.rmtree(left_over, ignore_errors=True)
            yield

    def _fetch(self, host: Host, kernel: Kernel) -> CachedKernel:
        """Under the lock."""
        reasons = []
        try:
            for apt in sources(self.root / "apt", self._progress):
                for meta in kernel.meta_packages:
                    image = newest_image(kernel.series, apt.show(meta))
                    if image is None:
                        reasons.append(f"{apt.what}: no {meta} for Linux {kernel.series}")
                        continue
                    try:
                        return self._fetch_image(apt, host, kernel, image)
                    except Unsuitable as why:
                        reasons.append(f"{image.name}: {why}")
                    except LabError as why:  # stale lists, most often: the next place is newer
                        reasons.append(f"{apt.what}: {why}")
                        break
        except LabError as why:
            reasons.append(str(why) + (f" ({why.next_step})" if why.next_step else ""))
        raise LabError(
            FETCH_FAILED,
            f"no kernel {kernel.series} for {host.name}:\n  " + "\n  ".join(reasons),
            "check the network and the package sources (apt-get update), then: "
            f"continuo-lab fetch --kernel {kernel.series}",
        )

    def _fetch_image(self, apt: Apt, host: Host, kernel: Kernel, image: Package) -> CachedKernel:
        shelf = self.root / host.name
        shelf.mkdir(parents=True, exist_ok=True)
        final = shelf / f"{image.name}_{image.version}.r{RECIPE}"
        if not (final / "manifest.json").exists():
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=shelf) as scratch:
                complete = self._assemble(apt, host, image, Path(scratch))
                if final.exists():
                    shutil.rmtree(final)
                complete.rename(final)
        _point(shelf / kernel.series, final.name)
        found = self.find(host, kernel)
        if found is None:
            raise LabError(FETCH_FAILED, f"{final} was just made, but cannot be read back")
        return found

    def _assemble(self, apt: Apt, host: Host, image: Package, scratch: Path) -> Path:
        with self._progress.stage(f"fetching {image.name} {image.version}"):
            deb = apt.download(image, scratch)
        with self._progress.stage(f"unpacking {image.name}"):
            tree = scratch / "tree"
            unpack(deb, tree)
            return self._reduce(apt, host, image, tree, scratch)

    def _reduce(self, apt: Apt, host: Host, image: Package, tree: Path, scratch: Path) -> Path:
        release = image.name[len("linux-image-"):]
        boot = tree / "boot"
        modules = ModuleTree(_module_folder(tree, release))
        _check_config((boot / f"config-{release}").read_text())
        missing = [name for name in host.modules if not modules.has(name)]
        if missing:
            raise Unsuitable(f"it has no {', '.join(missing)}")
        extra = [name for name in host.optional_modules if modules.has(name)]
        order = modules.load_list([*host.modules, *extra])

        complete = scratch / "complete"
        complete.mkdir()
        shutil.move(str(boot / f"vmlinuz-{release}"), complete / "vmlinuz")
        shutil.move(str(boot / f"config-{release}"), complete / "config")
        with open(complete / "base.cpio", "wb") as out:
            write_base(out, [(name, modules.content(name)) for name in order], apt, scratch)
        manifest = Manifest(RECIPE, image.name, image.version, release, tuple(order))
        (complete / "manifest.json").write_text(json.dumps(asdict(manifest), indent=1) + "\n")
        return complete


def _module_folder(tree: Path, release: str) -> Path:
    candidates = [tree / prefix / "modules" / release for prefix in ("lib", "usr/lib")]
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise Unsuitable("it has no modules folder")


def _check_config(config: str) -> None:
    lines = set(config.splitlines())
    needed = ("CONFIG_SERIAL_8250_CONSOLE=y", "CONFIG_DEVTMPFS=y", "CONFIG_BLK_DEV_INITRD=y")
    missing = [option for option in needed if option not in lines]
    if missing:
        raise Unsuitable(f"it is built without {', '.join(missing)}")


def _point(link: Path, target: str) -> None:
    """Makes `link` lead to `target` in one step: there is no moment without a link."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target)
    fresh.rename(link)
