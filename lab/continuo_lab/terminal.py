"""The tool's own stdin as the keyboard of an emulated host, or as the commands of its shell."""

import contextlib
import os
import socket
import termios
import threading
from typing import Iterator, Tuple


@contextlib.contextmanager
def terminal_kept(descriptor: int) -> Iterator[None]:
    """QEMU makes the terminal raw; where it is killed, it cannot undo that."""
    before = termios.tcgetattr(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Commands:
    """What comes in on a descriptor of any kind, through a socket to port 4 of the host. Nothing is
    read before `start`, so a boot that is lost loses none."""

    def __init__(self, source: int):
        self._source = source
        self._ours, self._qemus = socket.socketpair()

    def __enter__(self) -> "Commands":
        return self

    def __exit__(self, *_exception) -> None:
        self._qemus.close()
        self._ours.close()  # the thread may wait for input still, and then finds nobody to give it

    @property
    def descriptor(self) -> int:
        return self._qemus.fileno()

    def qemu_arguments(self) -> Tuple[str, ...]:
        return (
            *("-chardev", f"socket,id=stdin,fd={self.descriptor}"),
            *("-device", "virtserialport,chardev=stdin,nr=4,name=continuo.stdin"),
        )

    def start(self) -> None:
        threading.Thread(target=self._copy, daemon=True).start()

    def _copy(self) -> None:
        with contextlib.suppress(OSError):  # the host is gone
            while data := os.read(self._source, 1 << 16):
                self._ours.sendall(data)
            self._ours.shutdown(socket.SHUT_WR)
