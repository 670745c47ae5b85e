"""Where the program's output goes: a descriptor of the tool's own, or memory."""

import os
import select
import threading
from collections import deque
from typing import Deque, Optional, Protocol

_BACKLOG_BYTES_MAX = 256 << 20
_LINE_BYTES_MAX = 1 << 20  # a longer one is cut


class OutputClosed(Exception):
    """Nobody reads the tool's output any more."""


class Sink(Protocol):
    def put(self, data: bytes) -> None:
        """Never blocks. OutputClosed if an earlier write found that nobody reads."""

    def is_full(self) -> bool:
        """Whether `put` should wait."""

    def finish(self, seconds_max: Optional[float] = None) -> None:
        """Returns when all is written, or after `seconds_max`."""


class Memory:
    def __init__(self) -> None:
        self.content = bytearray()

    def put(self, data: bytes) -> None:
        self.content += data

    def is_full(self) -> bool:
        return False

    def finish(self, seconds_max: Optional[float] = None) -> None:
        pass


class Descriptor:
    """Written by a thread of its own, so that a slow reader does not hold up the relay."""

    def __init__(self, descriptor: int):
        self._descriptor = descriptor
        self._waiting: Deque[bytes] = deque()
        self._backlog_bytes = 0
        self._ending = False
        self._error: Optional[OSError] = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._write_all, daemon=True)
        self._thread.start()

    def put(self, data: bytes) -> None:
        with self._changed:
            self._raise_error()
            self._waiting.append(data)
            self._backlog_bytes += len(data)
            self._changed.notify()

    def is_full(self) -> bool:
        with self._changed:
            self._raise_error()
            return self._backlog_bytes >= _BACKLOG_BYTES_MAX

    def finish(self, seconds_max: Optional[float] = None) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify()
        self._thread.join(seconds_max)
        self._raise_error()

    def _raise_error(self) -> None:
        if self._error is not None:
            raise OutputClosed(str(self._error)) from self._error

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._ending)
                if not self._waiting:
                    return
                data = self._waiting.popleft()
            try:
                _write(self._descriptor, data)
            except OSError as error:
                with self._changed:
                    self._error = error
                return
            with self._changed:
                self._backlog_bytes -= len(data)


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(descriptor, view):]
        except BlockingIOError:  # somebody else made the shared descriptor non-blocking
            select.select([], [descriptor], [])


class Prefixed:
    """Lines of one of several writers into a sink that they share, each behind a prefix."""

    def __init__(self, sink: Sink, prefix: bytes):
        self._sink = sink
        self._prefix = prefix
        self._line = b""  # begun, not ended

    def put(self, data: bytes) -> None:
        *lines, self._line = (self._line + data).split(b"\n")
        if len(self._line) >= _LINE_BYTES_MAX:
            lines, self._line = [*lines, self._line], b""
        if lines:
            self._sink.put(b"".join(self._prefix + line + b"\n" for line in lines))

    def is_full(self) -> bool:
        return self._sink.is_full()

    def finish(self, seconds_max: Optional[float] = None) -> None:
        """The shared sink goes on: it is for its owner to finish."""
        if self._line:
            self._sink.put(self._prefix + self._line + b"\n")
            self._line = b""
