"""
Child processes that end with their parent, whatever ends the parent.

    parent ── pipe ──▶ guard ──▶ child (a process group of its own)

The guard is this file run as a script: a small Python process that starts the child, waits for it, and
holds the reading end of a pipe whose only writing end is in the parent. When the parent closes it, or is
killed with ``kill -9`` so that the kernel closes it, the guard ends the child: SIGTERM, and SIGKILL when the
grace is over.

Why not ``PR_SET_PDEATHSIG``: it is Linux only, it fires when the *thread* that forked ends, and setting it
takes a ``preexec_fn``, which may deadlock in a process with threads. Why a session of its own: Ctrl-C in a
terminal goes to the whole foreground process group, and children are to be stopped by their parent, in its
order, not by the terminal.

One thing is not covered: ``kill -9`` of the guard itself leaves the child alone.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast


class Child:
    """A running child process that is stopped at the latest when this process ends."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        output: int | IO[Any] | None = None,
        grace: float = 6,
        remove: Path | None = None,
    ) -> None:
        """
        Start ``arguments``.

        Args:
            arguments: The program's path and its arguments.
            env: Its environment; by default this process's.
            cwd: Its working directory; by default this process's.
            output: Where stdout and stderr go, as for ``subprocess``; read ``stdout`` if it is ``PIPE``.
            grace: Seconds between SIGTERM and SIGKILL.
            remove: A directory that is deleted when the child has ended.

        Raises:
            OSError: If the program cannot be started.

        """
        report_read, report_write = os.pipe()
        guard = [sys.executable, "-I", "-S", __file__, str(report_write), str(grace), str(remove or "")]
        try:
            self._guard = subprocess.Popen(  # noqa: S603 - the caller's program, without a shell
                [*guard, *map(str, arguments)],
                env=env,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                start_new_session=True,
                pass_fds=[report_write],
            )
        except BaseException:
            os.close(report_read)
            raise
        finally:
            os.close(report_write)
        self.stdout: IO[bytes] | None = self._guard.stdout
        self._lifeline = cast("IO[bytes]", self._guard.stdin)
        self._grace = grace
        with os.fdopen(report_read) as report:
            answer = report.readline().strip()
        if not answer.isdigit():
            self.stop()
            raise OSError(answer or f"the guard of {arguments[0]} ended at once")
        self.pid = int(answer)

    @property
    def returncode(self) -> int | None:
        """Exit code, 128 + the signal's number after a signal, or ``None`` while it runs."""
        return self._guard.poll()

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended, and its guard is about to
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the child without any chance to clean up, as ``kill -9`` does."""
        self.send_signal(signal.SIGKILL)
        self.wait()

    def request_stop(self) -> None:
        """Begin to stop the child, without waiting for it."""
        self._lifeline.close()

    def stop(self) -> int:
        """Stop the child, with SIGKILL if it outlives the grace, and return its exit code."""
        self.request_stop()
        return self.wait(self._grace + 5)

    def wait(self, timeout: float | None = None) -> int:
        """
        Wait for the child's end, at most ``timeout`` seconds, and return its exit code.

        Raises:
            subprocess.TimeoutExpired: If it still runs.

        """
        returncode = self._guard.wait(timeout)
        self.request_stop()  # only frees the pipe: there is no one left at its other end
        return returncode


def guard(report: int, grace: float, remove: str, arguments: list[str]) -> int:
    """Run ``arguments`` until they end or stdin does; return the exit code."""
    os.set_inheritable(report, False)

    def tell(answer: str) -> None:
        # A parent that was interrupted while it waited for this no longer reads; the child must be ended all the same.
        with contextlib.suppress(BrokenPipeError):
            os.write(report, f"{answer}\n".encode())
        os.close(report)

    try:
        child = subprocess.Popen(arguments, stdin=subprocess.DEVNULL, process_group=0)  # noqa: S603
    except OSError as error:
        tell(f"{arguments[0]}: {error.strerror}")
        return 127

    def signal_group(number: int) -> None:
        # macOS says EPERM for a group of zombies
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)

    def stop() -> None:
        signal_group(signal.SIGTERM)
        time.sleep(grace)
        signal_group(signal.SIGKILL)

    def watch_parent() -> None:
        os.read(0, 1)  # nothing is ever written: this returns when the parent's end is closed
        stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: threading.Thread(target=stop, daemon=True).start())
    threading.Thread(target=watch_parent, daemon=True).start()
    tell(str(child.pid))
    returncode = child.wait()
    signal_group(signal.SIGKILL)  # what the child started and left behind
    if remove:
        shutil.rmtree(remove, ignore_errors=True)
    return returncode if returncode >= 0 else 128 - returncode


if __name__ == "__main__":
    # os._exit, because the watching thread sits in os.read and must not hold up the interpreter's end.
    os._exit(guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:]))
