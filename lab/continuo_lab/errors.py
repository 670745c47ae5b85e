"""What can go wrong, each kind with its exit code and with what to do next."""

FETCH_FAILED = 120
MACHINE_LACKS = 121
HOST_DIED = 122
HOST_NEVER_UP = 123
TIMED_OUT = 124
BAD_REQUEST = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a program that writes into a closed pipe


class LabError(Exception):
    """A failure of the tool or of the emulated host, never of the program that runs in it."""

    def __init__(self, exit_code: int, message: str, next_step: str = ""):
        super().__init__(message)
        self.exit_code = exit_code
        self.next_step = next_step


class BootFailed(LabError):
    """The emulated host was lost before the program began: nothing was run, so it is safe, and
    often of use, to boot again."""

    def __init__(self, message: str, next_step: str = ""):
        super().__init__(HOST_NEVER_UP, message, next_step)


class Interrupted(BaseException):
    """SIGINT, SIGTERM or SIGHUP reached the tool. Not an Exception: no handler may swallow it."""

    def __init__(self, signum: int):
        super().__init__(signum)
        self.signum = signum
