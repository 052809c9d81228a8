"""Flower's executor of a SuperExec, as one resident worker: see `Executor` in Flower 1.42."""

import time
from logging import INFO

from flwr.supercore import log
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult

from .health import Alive
from .pauses import Pauses
from .task import Task
from .worker import Keeper

SHORTEST, LONGEST = 0.1, 0.3  # seconds between two looks for a task


class ResidentExecutor:
    """Runs each ClientApp task to its end before the next is looked for: a node has one at once."""

    def __init__(self) -> None:
        self._keeper = Keeper(lambda line: log(INFO, line))
        self._alive = Alive()
        self._asked = False  # the SuperNode, for a task
        self._pauses = Pauses(SHORTEST, LONGEST)

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """ClientApps alone: this is a site, no server. What is asked for next."""
        self._asked = True
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def wait_for_capacity(
        self,
        task_type: TaskType | None = None,
        *,
        fab_hash: str | None = None,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> None:
        """Nothing to wait for: `launch` returns once there is room."""

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Run a task; what goes wrong in it is its answer."""
        if spec.runtime_dependency_install:
            return LaunchResult.failed("a resident worker installs nothing: use flower-superexec")
        Task(spec, self._keeper, self._alive.heard).run()
        self._pauses.begin(time.monotonic())
        return LaunchResult.accepted()

    def sleep(self, seconds: float) -> None:
        """Instead of ``time.sleep`` between two looks for a task: no longer than Flower would."""
        time.sleep(min(seconds, self._pauses.next(time.monotonic())))

    def reconcile(self) -> None:
        """Between two looks for a task: the one before was answered, or this would not come."""
        if self._asked:
            self._alive.heard()

    def close(self) -> None:
        """End the worker."""
        self._keeper.close()
