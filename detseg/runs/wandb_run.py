"""A Weights & Biases run in a thread of its own: its owner neither waits for W&B or the network nor fails with them.

run = WandbRun(identity, mode="auto", config={...})
run.do(lambda wandb_run: wandb_run.log({"loss": 1.0}, step=10))
run.finish()
"""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import netrc
import os
import queue
import secrets
import shlex
import string
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger(__name__)

DEFAULT_PROJECT = "detseg"
RECORD_ENTRY = "wandb"  # of run.json: what `Identity.to_plain` gives
MODES = ("auto", "online", "offline", "disabled")
# Other names that W&B accepts for these modes.
_SAME_MODE = {"dryrun": "offline", "run": "online"}
# Timeouts in seconds, unless set by W&B's own variables: for the server's first response, and at the end for sending
# the rest. A running training waits for neither.
INIT_TIMEOUT = 30.0
FINISH_TIMEOUT = 60.0
END_TIMEOUT = 15.0  # for W&B's own process to end a run, in addition to sending
# Seconds of logged data that may be lost if the machine is killed; W&B's own value is 15.
_FLUSH_INTERVAL = 2.0
# Actions that can queue while W&B does not respond; further ones are dropped.
_MOST_WAITING = 20_000


@dataclass(frozen=True)
class Identity:
    """The identity of a run in W&B.

    run_id: 8 letters and digits. project, entity, group, name: "" for W&B's own choice. tags: unordered. folder:
    contains W&B's folder `wandb`.
    """

    run_id: str
    project: str
    folder: Path
    entity: str = ""
    group: str = ""
    name: str = ""
    tags: Sequence[str] = ()
    job_type: str = "train"

    def with_environment(self) -> Identity:
        """Return the identity as W&B's environment variables override it."""
        variables = {
            "run_id": "WANDB_RUN_ID",
            "project": "WANDB_PROJECT",
            "folder": "WANDB_DIR",
            "entity": "WANDB_ENTITY",
            "group": "WANDB_RUN_GROUP",
            "name": "WANDB_NAME",
            "tags": "WANDB_TAGS",
        }
        overrides: dict[str, Any] = {name: os.environ[one] for name, one in variables.items() if os.environ.get(one)}
        if "folder" in overrides:
            overrides["folder"] = Path(overrides["folder"])
        if "tags" in overrides:
            overrides["tags"] = overrides["tags"].split(",")
        return dataclasses.replace(self, **overrides)

    def to_plain(self) -> dict[str, str]:
        """Return the entry of run.json: later commands join the run's group by it, a resumed training its run."""
        return {
            "id": self.run_id,
            "project": self.project,
            "entity": self.entity,
            "group": self.group,
            "folder": str(self.folder),
        }


def missing_wandb(mode: str) -> str | None:
    """Return the message if W&B is requested but not installed, else None."""
    if chosen_mode(mode) == "disabled" or importlib.util.find_spec("wandb") is not None:
        return None
    return "wandb is not installed: pip install wandb"


def new_run_id() -> str:
    """Return a new run id in W&B's format."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def environment_or(name: str, value: str) -> str:
    """Return one of W&B's environment variables if it is set, else `value`."""
    return os.environ.get(name) or value


def chosen_mode(asked: str) -> str:
    """Return one of MODES: $WANDB_MODE, else `asked`."""
    mode = environment_or("WANDB_MODE", asked)
    return _SAME_MODE.get(mode, mode)


class WandbRun:
    """A W&B run, which begins at once in its own thread. Errors there are logged once and otherwise ignored.

    If online mode is requested but there is no login, or the server does not respond, the run is offline.

    Args:
        mode: one of MODES except disabled, or another one of W&B's.
        config: nested plain values, which W&B shows as columns.
        resumed: the run already exists.
    """

    def __init__(
        self, identity: Identity, *, mode: str = "auto", config: Mapping[str, Any] | None = None, resumed: bool = False
    ) -> None:
        self.identity = identity
        self.offline: bool | None = None  # not known yet
        self.url = ""
        self.path: Path | None = None  # W&B's folder of this run and process
        self._asked, self._config, self._resumed = mode, config, resumed
        self._actions: queue.Queue[Callable[[Any], None] | None] = queue.Queue()
        self._warned = False
        self._exit_code = 0
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def do(self, action: Callable[[Any], None]) -> None:
        """Queue `action`, to be called by the thread with W&B's run. Does not wait."""
        if self._actions.qsize() >= _MOST_WAITING:
            self._warn("does not respond; data that it lacks are in the run folder")
        else:
            self._actions.put(action)

    def finish(self, exit_code: int = 0) -> bool:
        """Let W&B end the run; return whether it did so in time."""
        self._exit_code = exit_code
        self._actions.put(None)
        # A pending start may first have to time out, before an offline run is opened instead.
        seconds = float(os.environ.get("WANDB_FINISH_TIMEOUT") or FINISH_TIMEOUT) + END_TIMEOUT
        self._thread.join(seconds + (2 * INIT_TIMEOUT if self.offline is None else 0))
        ended = not self._thread.is_alive()
        if not ended:
            self._warn("did not finish in time; unsent data stay in its folder")
        return ended

    @property
    def to_sync(self) -> str:
        """Return the folder for a later `wandb sync`, "" if none is needed."""
        return str(self.path) if self.path is not None and self.offline else ""

    @property
    def sync_command(self) -> str | None:
        """Return the command that uploads `to_sync`."""
        return shlex.join(["wandb", "sync", self.to_sync]) if self.to_sync else None

    def _work(self) -> None:
        run: Any = None
        try:
            run = self._open()
        except Exception as error:
            self._warned = False  # worth another one
            self._warn(f"cannot log this run: {type(error).__name__}: {error}")
        while (action := self._actions.get()) is not None:
            if run is not None:
                self._try(action, run)
        if run is not None:
            started = time.monotonic()
            self._try(lambda run: run.finish(exit_code=self._exit_code), run)
            _end_wandb(import_module("wandb"))  # the file is complete only when W&B's process has ended
            if not self.offline and time.monotonic() - started >= FINISH_TIMEOUT:
                self.offline = True  # partly: the file has all of it

    def _try(self, action: Callable[[Any], None], run: Any) -> None:
        try:
            action(run)
        except Exception as error:
            self._warn(f"did not accept some data; logging continues: {type(error).__name__}: {error}")

    def _open(self) -> Any:
        wandb = import_module("wandb")
        mode = self._asked
        settings = wandb.Settings()
        if mode in ("auto", "online") and not has_login(str(settings.base_url)):
            if mode == "online":
                self._warn("has no login here (`wandb login`, or $WANDB_API_KEY): the run is offline")
            mode = "offline"
        elif mode == "auto":
            mode = "online"
        self.identity.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._init(wandb, mode)
        except Exception as error:
            if mode != "offline":
                self._warn(f"cannot be reached; the run is offline: {type(error).__name__}: {error}")
            # W&B's process still has the id of a run that failed to start; or it was killed, unnoticed by this process.
            _end_wandb(wandb)
        return self._init(wandb, "offline")

    def _init(self, wandb: Any, mode: str) -> Any:
        own = self.identity
        settings = {
            "silent": True,  # messages are logged here, in one line
            **({} if mode == "offline" else {"init_timeout": INIT_TIMEOUT, "login_timeout": INIT_TIMEOUT}),
            "finish_timeout": FINISH_TIMEOUT,
            "reinit": "create_new",  # neither joins nor ends a run of another part of the program
            "git_root": os.getcwd(),
            "x_transaction_log_flush_interval": _FLUSH_INTERVAL,
        }
        known = type(wandb.Settings()).model_fields
        settings = {
            name: value
            for name, value in settings.items()
            if name in known and f"WANDB_{name.removeprefix('x_').upper()}" not in os.environ
        }
        run = wandb.init(
            id=own.run_id,
            project=own.project,
            entity=own.entity or None,
            group=own.group or None,
            name=own.name or None,
            tags=list(own.tags) or None,
            job_type=environment_or("WANDB_JOB_TYPE", own.job_type),
            dir=str(own.folder),
            config=dict(self._config or {}),
            mode=mode,
            resume="allow" if self._resumed or "WANDB_RUN_ID" in os.environ else None,
            settings=wandb.Settings(**settings),
        )
        self.path, self.offline = Path(run.dir).parent, mode == "offline"
        self.url = "" if self.offline else run.url or ""
        logger.info("W&B: %s", self.url or f"offline, in {self.path}")
        return run

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("W&B %s", text)


def _end_wandb(wandb: Any) -> None:
    """End W&B's own process, unless another part of the program has an active run."""
    if wandb.run is None:
        with suppress(Exception, SystemExit):
            wandb.teardown()


def has_login(server: str) -> bool:
    """Whether an API key for a server is stored, without prompting for one."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(urlsplit(server).hostname or ""):
                return True
    return False
