"""The few facts that are needed of 64-bit little-endian ELF files; foreign bytes are checked."""

import struct
from typing import Iterator, Optional, Tuple

_PT_INTERP = 3
_SHT_NOBITS = 8


class NotElf(ValueError):
    """Not a well-formed 64-bit little-endian ELF file."""


class Elf:
    def __init__(self, data: bytes):
        if data[:6] != b"\x7fELF\x02\x01":
            raise NotElf("no 64-bit little-endian ELF header")
        self._data = data
        (self.machine,) = self._read("<H", 18)
        self._phoff, self._shoff = self._read("<QQ", 32)
        self._phentsize, self._phnum, self._shentsize, self._shnum, self._shstrndx = self._read(
            "<HHHHH", 54
        )

    def is_dynamic(self) -> bool:
        """Whether a program interpreter (and with it shared libraries) is needed to run it."""
        offsets = (self._phoff + i * self._phentsize for i in range(self._phnum))
        return any(self._read("<I", offset)[0] == _PT_INTERP for offset in offsets)

    def section(self, name: bytes) -> Optional[bytes]:
        """Content of the first section of that name."""
        if self._shnum == 0:
            return None
        _, _, names_at, names_size = self._section_header(self._shstrndx)
        names = self._slice(names_at, names_size)
        for index in range(self._shnum):
            name_at, kind, offset, size = self._section_header(index)
            if kind != _SHT_NOBITS and names[name_at:].split(b"\0", 1)[0] == name:
                return self._slice(offset, size)
        return None

    def _section_header(self, index: int) -> Tuple[int, int, int, int]:
        at = self._shoff + index * self._shentsize
        name, kind = self._read("<II", at)
        offset, size = self._read("<QQ", at + 24)
        return name, kind, offset, size

    def _read(self, layout: str, offset: int) -> Tuple[int, ...]:
        return struct.unpack(layout, self._slice(offset, struct.calcsize(layout)))

    def _slice(self, offset: int, size: int) -> bytes:
        if offset + size > len(self._data):
            raise NotElf(f"{size} bytes at {offset} lie outside of the file")
        return self._data[offset:offset + size]


def strings_of(section: bytes) -> Iterator[bytes]:
    """The NUL-terminated strings of a section such as .modinfo."""
    return (entry for entry in section.split(b"\0") if entry)
