"""Writes the "newc" cpio format that the kernel unpacks as initramfs.

The kernel takes several archives one after the other in one file, and an entry that comes later
replaces an earlier one of the same name: that is how a run's files are laid over the cached base.
Inode numbers, owners and times are fixed, so the same input gives the same bytes.
"""

import stat
from pathlib import PurePosixPath
from typing import BinaryIO, Dict

from .errors import BAD_REQUEST, LabError

_MAX_FILE_BYTES = 0xFFFFFFFF  # the format has eight hexadecimal digits for it


class CpioWriter:
    """One archive. Directories above an entry are written on their own, once."""

    def __init__(self, out: BinaryIO):
        self._out = out
        self._inode = 0
        self._known_directories = {PurePosixPath("/")}
        self.bytes_written = 0

    def directory(self, path: str, permissions: int = 0o755) -> None:
        where = _absolute(path)
        if where in self._known_directories:
            return
        self._parents_of(where)
        self._known_directories.add(where)
        self._entry(where, stat.S_IFDIR | permissions, b"", links=2)

    def file(self, path: str, content: bytes, permissions: int = 0o644) -> None:
        where = _absolute(path)
        self._parents_of(where)
        self._entry(where, stat.S_IFREG | permissions, content)

    def symlink(self, path: str, target: str) -> None:
        where = _absolute(path)
        self._parents_of(where)
        self._entry(where, stat.S_IFLNK | 0o777, _bytes(target))

    def character_device(self, path: str, major: int, minor: int, permissions: int) -> None:
        where = _absolute(path)
        self._parents_of(where)
        self._entry(where, stat.S_IFCHR | permissions, b"", device=(major, minor))

    def finish(self) -> None:
        self._record(b"TRAILER!!!", 0, b"", 1, (0, 0), inode=0)

    def _parents_of(self, where: PurePosixPath) -> None:
        if where.parent != where:
            self.directory(str(where.parent))

    def _entry(self, where, mode, content, links=1, device=(0, 0)) -> None:
        if len(content) > _MAX_FILE_BYTES:
            raise LabError(BAD_REQUEST, f"{where} is larger than an initramfs entry can be (4 GiB)")
        self._inode += 1
        self._record(_bytes(str(where))[1:], mode, content, links, device, self._inode)

    def _record(self, name, mode, content, links, device, inode) -> None:
        fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._write(header + name + b"\0")
        self._pad()
        self._write(content)
        self._pad()

    def _pad(self) -> None:
        self._write(b"\0" * (-self.bytes_written % 4))

    def _write(self, data: bytes) -> None:
        self._out.write(data)
        self.bytes_written += len(data)


def _absolute(path: str) -> PurePosixPath:
    where = PurePosixPath(path)
    if not where.is_absolute() or ".." in where.parts:
        raise ValueError(f"not a plain absolute path: {path!r}")
    return where


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def members(archive: bytes) -> Dict[str, bytes]:
    """What the regular files in an archive hold, by their path without its first slash."""
    found: Dict[str, bytes] = {}
    at = 0
    while archive[at : at + 6] == b"070701":
        fields = [int(archive[at + 6 + 8 * i : at + 14 + 8 * i], 16) for i in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        if name == "TRAILER!!!":
            break
        begin = (at + 110 + name_size + 3) & ~3
        if stat.S_ISREG(mode):
            found[name] = archive[begin : begin + size]
        at = (begin + size + 3) & ~3
    return found
