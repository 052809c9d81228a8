"""The worker that a site keeps: a process that has one app loaded and answers its messages.

It is reached over a pair of sockets that only these two processes hold: there is no name by which
another user could open it. All it keeps in memory can be computed again, so a worker that dies is
started again and asked again; one that hangs is ended once nobody waits for its answer.
"""

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from threading import Timer

_PROGRAM = Path(__file__).with_name("answer.py")
_END_SECONDS = 5.0


class WorkerFailed(Exception):  # noqa: N818 (what happened)
    """A worker gave no answer, and why."""


@dataclass(frozen=True)
class Bundle:
    """The app that a message is for, as Flower installed it."""

    folder: Path
    fab_id: str
    version: str
    sha256: str


class Worker:
    """A process that runs one bundle's ClientApp."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self._why = ""
        ours, theirs = socketpair()
        with theirs:
            given = [str(theirs.fileno()), bundle.fab_id, bundle.version, bundle.sha256]
            self._process = subprocess.Popen(  # noqa: S603 (our own program, no shell)
                [sys.executable, "-P", str(_PROGRAM), *given],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for the site, which then ends it
            )
        self._peer = Connection(ours.detach())

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def ask(self, frames: Sequence[bytes], seconds: float) -> tuple[bytes, bytes]:
        """Its reply and the context after it, for message, context and task id (answer.py).

        WorkerFailed if it dies, or has to be ended before.
        """
        hung = Timer(seconds, self.end, [f"it gave no answer within {seconds:g} s"])
        hung.start()
        try:
            for frame in frames:
                self._peer.send_bytes(frame)
            return self._peer.recv_bytes(), self._peer.recv_bytes()
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_SECONDS)
            why = self._why or f"it ended with {_told(self._process.returncode)}"
            raise WorkerFailed(f"the site's worker {self.pid} failed: {why}") from error
        finally:
            hung.cancel()

    @property
    def usable(self) -> bool:
        """Whether it can be asked."""
        return self._process.poll() is None and not self._why

    @property
    def was_ended(self) -> bool:
        """Whether the site itself ended it: then nobody waits for an answer."""
        return bool(self._why)

    def end(self, why: str) -> None:
        """SIGKILL: nothing that it holds is needed again. From any thread."""
        self._why = self._why or why
        self._process.kill()

    def close(self) -> None:
        """End it and forget it."""
        self.end("the site ended")
        self._process.wait()
        self._peer.close()


class Keeper:
    """Keeps one worker: of the code that is asked for, started again when it died."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self._worker: Worker | None = None

    def has(self, bundle: Bundle) -> bool:
        """Whether the worker is of that code, so that it was installed and checked."""
        return self._worker is not None and self._worker.bundle == bundle

    def ask(self, bundle: Bundle, frames: Sequence[bytes], seconds: float) -> tuple[bytes, bytes]:
        """The worker's answer; a worker that died meanwhile is replaced and asked once more."""
        worker = self._for(bundle)
        try:
            return worker.ask(frames, seconds)
        except WorkerFailed as error:
            self.say(str(error))
            if worker.was_ended:
                raise
        self.say("the message is given to a new worker")
        return self._for(bundle).ask(frames, seconds)

    def stop(self, why: str) -> None:
        """End what the worker is doing, from another thread."""
        if self._worker is not None:
            self._worker.end(why)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()
            self._worker = None

    def _for(self, bundle: Bundle) -> Worker:
        """A worker that can be asked and has that code."""
        if self._worker is not None and self._worker.bundle != bundle:
            self.say(f"a run has other code: a new worker instead of {self._worker.pid}")
            self.close()
        if self._worker is not None and not self._worker.usable:
            self.close()
        if self._worker is None:
            self._worker = Worker(bundle)
            self.say(f"worker {self._worker.pid} has the code {bundle.sha256[:8]}")
        return self._worker


def _told(returncode: int | None) -> str:
    if returncode is None:
        return "its connection"
    if returncode < 0:
        return signal.Signals(-returncode).name
    return f"exit code {returncode}"
