"""Whether a running trial is still run by somebody: its lease.

A trial that a killed process left RUNNING would stay so for ever, and would count as under way in every suggestion. Its
lease says where it runs, and until when it counts as alive without news. On the same host the process table decides;
elsewhere the time stamp does.
"""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from threading import Event, Thread
from typing import TYPE_CHECKING

from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

if TYPE_CHECKING:
    from optuna import Study

KEY = "gpmoe:lease"
REAPED = "gpmoe:reaped"


@dataclass(frozen=True)
class Lease:
    """Who runs a trial.

    Attributes:
        host, pid: of the process.
        born: when the process started, in the clock ticks of its system, which tells it from a later one of the same
            number; 0 where the system does not say.
        until: seconds since 1970 up to which it counts as alive without news.
    """

    host: str
    pid: int
    born: int
    until: float

    @classmethod
    def of_this_process(cls, seconds: float) -> "Lease":
        """A lease of this process for so many seconds from now."""
        return cls(socket.gethostname(), os.getpid(), _born(os.getpid()), time.time() + seconds)

    def expired(self) -> bool:
        """Whether the process is gone, as far as can be told from here."""
        if self.host == socket.gethostname():
            return not _runs(self.pid) or _born(self.pid) != self.born
        return time.time() > self.until

    def to_json(self) -> str:
        """A text of under 300 characters."""
        return json.dumps(asdict(self))


def take(study: "Study", trial: FrozenTrial, seconds: float) -> None:
    """Write the lease of this process into a trial, or renew it."""
    study._storage.set_trial_system_attr(trial._trial_id, KEY, Lease.of_this_process(seconds).to_json())


def lease_of(trial: FrozenTrial) -> Lease | None:
    """The lease of a trial; None if it was started without this package."""
    text = trial.system_attrs.get(KEY)
    return None if text is None else Lease(**json.loads(text))


def is_alive(trial: FrozenTrial) -> bool:
    """Whether a running trial counts as under way; one without a lease does."""
    lease = lease_of(trial)
    return lease is None or not lease.expired()


def reap(study: "Study") -> list[FrozenTrial]:
    """Fail the running trials whose lease has expired.

    Returns:
        Those that this call failed; another process may have failed others.
    """
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return [trial for trial in running if not is_alive(trial) and _fail(study, trial)]


def _fail(study: "Study", trial: FrozenTrial) -> bool:
    try:  # whether another process was faster is known only by trying
        study._storage.set_trial_system_attr(trial._trial_id, REAPED, "its process ended without telling a result")
        return study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _born(pid: int) -> int:
    """Start of a process in clock ticks since boot, 0 where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return int(file.read().rpartition(")")[2].split()[19])
    except OSError:
        return 0


@contextmanager
def renewed(study: "Study", trial: FrozenTrial, seconds: float) -> Iterator[None]:
    """Renew a trial's lease, every third of its length, while a block runs: other hosts can't see the process."""
    done = Event()

    def renew() -> None:
        while not done.wait(seconds / 3):
            take(study, trial, seconds)

    thread = Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
