"""QEMU's monitor: one command out, its answer back, whichever thread asks."""

import json
import socket
import threading
import time
from typing import Any, Dict


class QmpError(Exception):
    pass


class Qmp:
    def __init__(self, path: str, patience_s: float = 120.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(patience_s)
        _connect(self._socket, path, patience_s)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        self._asking = threading.Lock()
        self._next()  # its greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, **arguments: Any) -> Any:
        request: Dict[str, Any] = {"execute": command}
        if arguments:
            request["arguments"] = arguments
        with self._asking:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._next()
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error'].get('desc')}")
                if "return" in answer:
                    return answer["return"]  # what comes before it are events

    def monitor(self, line: str) -> str:
        return self.ask("human-monitor-command", **{"command-line": line})

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def _next(self) -> Dict:
        line = self._lines.readline()
        if not line:
            raise QmpError("QEMU closed its monitor")
        return json.loads(line)


def _connect(connection: socket.socket, path: str, patience_s: float) -> None:
    end = time.monotonic() + patience_s
    while True:
        try:
            connection.connect(path)
            return
        except OSError as error:
            if time.monotonic() > end:
                raise QmpError(f"no monitor at {path}: {error}") from error
            time.sleep(0.05)
