"""A run of Weights & Biases in a thread of its own: its owner neither waits for W&B or the network nor
fails with them.

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
# Other words of W&B for the same.
_SAME_MODE = {"dryrun": "offline", "run": "online"}
# Seconds, each unless W&B's own variable says otherwise: for the first answer of the server, and at the end for what is
# not sent yet. Neither is waited for while a training runs.
INIT_TIMEOUT = 30.0
FINISH_TIMEOUT = 60.0
END_TIMEOUT = 15.0  # for W&B's own process to end a run, beside sending
# Seconds after which a killed machine may have lost what was logged; W&B's own value is 15.
_FLUSH_INTERVAL = 2.0
# Actions that wait while W&B does not answer; what comes then is lost.
_MOST_WAITING = 20_000


@dataclass(frozen=True)
class Identity:
    """What a run is called.

    run_id: of 8 letters and digits. project, entity, group, name: "" for W&B's own choice. tags: without order.
    folder: the one that holds W&B's folder `wandb`.
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
        """Return what it is called where W&B's environment variables say otherwise."""
        variables = {
            "run_id": "WANDB_RUN_ID",
            "project": "WANDB_PROJECT",
            "folder": "WANDB_DIR",
            "entity": "WANDB_ENTITY",
            "group": "WANDB_RUN_GROUP",
            "name": "WANDB_NAME",
            "tags": "WANDB_TAGS",
        }
        said: dict[str, Any] = {name: os.environ[one] for name, one in variables.items() if os.environ.get(one)}
        if "folder" in said:
            said["folder"] = Path(said["folder"])
        if "tags" in said:
            said["tags"] = said["tags"].split(",")
        return dataclasses.replace(self, **said)

    def to_plain(self) -> dict[str, str]:
        """What run.json keeps: later commands join the run's group by it, and a resumed training its run."""
        return {
            "id": self.run_id,
            "project": self.project,
            "entity": self.entity,
            "group": self.group,
            "folder": str(self.folder),
        }


def missing_wandb(mode: str) -> str | None:
    """What to say where W&B is asked for and is not installed."""
    if chosen_mode(mode) == "disabled" or importlib.util.find_spec("wandb") is not None:
        return None
    return "wandb is not installed: pip install wandb"


def new_run_id() -> str:
    """An id as W&B makes them, for a run that nothing else names."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def environment_or(name: str, value: str) -> str:
    """A variable of W&B where it is set, else `value`."""
    return os.environ.get(name) or value


def chosen_mode(asked: str) -> str:
    """One of MODES: $WANDB_MODE, else what was asked for."""
    mode = environment_or("WANDB_MODE", asked)
    return _SAME_MODE.get(mode, mode)


class WandbRun:
    """Begins at once, in its thread. What fails there is warned of once and left out.

    Where online is asked for and there is no login, or the server does not answer, it is an offline run.

    Args:
        mode: one of MODES except disabled, or another one of W&B.
        config: nested plain values, which W&B shows as columns.
        resumed: the run is there already.
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
        """Let the thread call `action` with W&B's run, after what came before. Does not wait."""
        if self._actions.qsize() >= _MOST_WAITING:
            self._warn("does not answer; what is not logged there is in the run folder")
        else:
            self._actions.put(action)

    def finish(self, exit_code: int = 0) -> bool:
        """Let W&B end the run; return whether it did within the time for it."""
        self._exit_code = exit_code
        self._actions.put(None)
        # A start that is under way may first have to fail, and an offline run to be opened instead.
        seconds = float(os.environ.get("WANDB_FINISH_TIMEOUT") or FINISH_TIMEOUT) + END_TIMEOUT
        self._thread.join(seconds + (2 * INIT_TIMEOUT if self.offline is None else 0))
        ended = not self._thread.is_alive()
        if not ended:
            self._warn("did not end in time; what it has not sent stays in its folder")
        return ended

    @property
    def to_sync(self) -> str:
        """The folder that `wandb sync` is to send later, "" for none."""
        return str(self.path) if self.path is not None and self.offline else ""

    @property
    def sync_command(self) -> str | None:
        """What sends `to_sync`."""
        return shlex.join(["wandb", "sync", self.to_sync]) if self.to_sync else None

    def _work(self) -> None:
        run: Any = None
        try:
            run = self._open()
        except Exception as error:
            self._warned = False  # worth another one
            self._warn(f"gets nothing of this run: {type(error).__name__}: {error}")
        while (action := self._actions.get()) is not None:
            if run is not None:
                self._try(action, run)
        if run is not None:
            started = time.monotonic()
            self._try(lambda run: run.finish(exit_code=self._exit_code), run)
            _end_wandb(import_module("wandb"))  # only when its process has ended is all of it in the file
            if not self.offline and time.monotonic() - started >= FINISH_TIMEOUT:
                self.offline = True  # in part: the file has all of it

    def _try(self, action: Callable[[Any], None], run: Any) -> None:
        try:
            action(run)
        except Exception as error:
            self._warn(f"did not take something, the rest goes on: {type(error).__name__}: {error}")

    def _open(self) -> Any:
        wandb = import_module("wandb")
        mode = self._asked
        settings = wandb.Settings()
        if mode in ("auto", "online") and not has_login(str(settings.base_url)):
            if mode == "online":
                self._warn("has no login here (`wandb login`, or $WANDB_API_KEY): the run is an offline one")
            mode = "offline"
        elif mode == "auto":
            mode = "online"
        self.identity.folder.mkdir(parents=True, exist_ok=True)
        try:
            return self._init(wandb, mode)
        except Exception as error:
            if mode != "offline":
                self._warn(f"cannot be reached, the run is an offline one: {type(error).__name__}: {error}")
            # W&B's process keeps the id of a run that did not begin; or it was killed, and this one does not know.
            _end_wandb(wandb)
        return self._init(wandb, "offline")

    def _init(self, wandb: Any, mode: str) -> Any:
        own = self.identity
        settings = {
            "silent": True,  # what is worth saying is said here, in one line
            **({} if mode == "offline" else {"init_timeout": INIT_TIMEOUT, "login_timeout": INIT_TIMEOUT}),
            "finish_timeout": FINISH_TIMEOUT,
            "reinit": "create_new",  # neither joins nor ends a run that another part of the program has
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
    """End W&B's own process, unless another part of the program has a run there."""
    if wandb.run is None:
        with suppress(Exception, SystemExit):
            wandb.teardown()


def has_login(server: str) -> bool:
    """Whether there is a key for a server, without asking anyone for it."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(path).authenticators(urlsplit(server).hostname or ""):
                return True
    return False
