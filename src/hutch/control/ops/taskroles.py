"""Task roles: what a task's containers sign with."""

import hmac

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import AccessDenied, NotFound
from hutch.control.ops.sts import StsOps
from hutch.control.sessions import TemporaryCredentials
from hutch.model.iam import Session
from hutch.model.task import Task
from hutch.model.taskdef import TaskDefinition
from hutch.rules.iam.arns import entity_arn
from hutch.store import tables
from hutch.store.contract import Store

TASK_SESSION_S = 6 * 3600
TASKS_SERVICE = "ecs-tasks.amazonaws.com"


class TaskCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a task's containers get to sign with."""

    role_arn: str
    credentials: TemporaryCredentials


class TaskRoles:
    """Credentials for tasks that have a task role. Asked again before they expire."""

    def __init__(
        self, store: Store, clock: Clock, sts: StsOps, *, region: str, account_id: str, path_key: str
    ) -> None:
        """`path_key` (hexadecimal) makes the ids by which tasks ask, so that nobody guesses one."""
        self._store = store
        self._clock = clock
        self._sts = sts
        self._account_id = account_id
        self._path_key = bytes.fromhex(path_key)
        self._context = {
            "aws:sourceaccount": (account_id,),
            "aws:sourcearn": (f"arn:aws:ecs:{region}:{account_id}:*",),
        }

    def credentials_id(self, task: Task, definition: TaskDefinition) -> str:
        """What the task's containers ask by; "" for a task without a role. A copy's containers ask by what they know from
        the first one (and get credentials of their own: who asks is told by the address)."""
        if not _role_of(task, definition):
            return ""
        h = hmac.digest(
            self._path_key, f"credentials/{task.fork_of or task.task_id}".encode(), "sha256"
        ).hex()
        return f"{h[:8]}-{h[8:12]}-{h[12:16]}-{h[16:20]}-{h[20:32]}"

    def credentials(self, cluster: str, task_id: str) -> TaskCredentials:
        """Credentials for a task that is not stopped, as `assumed-role/<role>/<task id>`, good for six hours.

        Raises `NotFound` for a task that is not there, is stopped or has no task role, or whose role is not there;
        `AccessDenied` for a role that does not trust `ecs-tasks.amazonaws.com`.
        """
        with self._store.read() as reader:
            task = reader.get(tables.TASKS, cluster, task_id)
            if task is None or task.is_stopped:
                raise NotFound(f"task {task_id} does not run")
            definition = reader.get(tables.TASK_DEFINITIONS, task.family, f"{task.revision:010d}")
        arn = _role_of(task, definition)
        if not arn:
            raise NotFound(f"task {task_id} has no task role; set taskRoleArn in its task definition")
        if not arn.startswith("arn:"):
            arn = entity_arn(self._account_id, "role", "/", arn)
        role = self._sts.find_role(arn)
        if role is None:
            raise NotFound(f"the task role {arn} does not exist; make it with CreateRole")
        if not self._sts.check_service(role, TASKS_SERVICE, self._context):
            raise AccessDenied(
                f"the trust policy of the task role {arn} does not let {TASKS_SERVICE} assume it; see "
                f"UpdateAssumeRolePolicy"
            )
        now = self._clock.now()
        session = Session(issued_at=now, expires_at=now + TASK_SESSION_S)
        become = self._sts.become(role, task_id, session)
        return TaskCredentials(role_arn=arn, credentials=become.credentials)


def _role_of(task: Task, definition: TaskDefinition | None) -> str:
    """The task's role: the one that overrides its definition's. "" if it has none."""
    document = definition.document if definition else {}
    return str(task.overrides.get("taskRoleArn") or document.get("taskRoleArn") or "")
