"""What the tool says on stderr while it works."""

import contextlib
import sys
import threading
import time
from typing import Iterator

_SILENT_SECONDS = 1.0  # what is over sooner is not worth a line


class Progress:
    """Lines on stderr. Quiet ones print warnings only (errors do not pass through here)."""

    def __init__(self, quiet: bool = False, verbose: bool = False):
        self._quiet = quiet
        self._verbose = verbose and not quiet

    def say(self, text: str) -> None:
        if not self._quiet:
            _line(text)

    def warn(self, text: str) -> None:
        """Also said by a quiet one: what would otherwise be kept from the reader."""
        _line(text)

    def detail(self, text: str) -> None:
        if self._verbose:
            _line(text)

    @contextlib.contextmanager
    def stage(self, what: str) -> Iterator[None]:
        """Around one piece of work; tells of it only if it lasts longer than a second."""
        if self._quiet:
            yield
            return
        began = time.monotonic()
        done = threading.Event()
        teller = threading.Thread(target=_tell, args=(what, began, done), daemon=True)
        teller.start()
        try:
            yield
        finally:
            done.set()
            teller.join()


def _tell(what: str, began: float, done: threading.Event) -> None:
    if done.wait(_SILENT_SECONDS):
        return
    live = sys.stderr.isatty()
    if not live:
        _line(f"{what} ...")
    while True:
        if live:
            _raw(f"\r\x1b[Kcontinuo-lab: {what} ... {time.monotonic() - began:.0f} s")
        if done.wait(1.0):
            break
    if live:
        _raw("\r\x1b[K")
    _line(f"{what}: {time.monotonic() - began:.1f} s")


def _line(text: str) -> None:
    _raw(f"continuo-lab: {text}\n")


def _raw(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens: no reason to fail
        sys.stderr.write(text)
        sys.stderr.flush()
