"""`lspm serve` and `lspm stop`: a run's plan as an endpoint, in this process, in the background, or on a cluster."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from lspm_ray.artifact import Artifact, ArtifactStore, write_atomic
from lspm_ray.cluster import connect, running_cluster
from lspm_ray.commands.console import StageView
from lspm_ray.commands.run import settings_from
from lspm_ray.commands.summary import describe
from lspm_ray.config import digest_of
from lspm_ray.errors import ResourceError, UserError
from lspm_ray.pipeline import NotMadeError, Pipeline, ReadOnlyStore
from lspm_ray.selection.recertify import latest
from lspm_ray.selection.select import read_plan
from lspm_ray.serving.config import ServeConfig
from lspm_ray.serving.deploy import deploy, undeploy, url
from lspm_ray.serving.render import render, write
from lspm_ray.settings import Settings

_START_TIMEOUT_S = 300
_STOP_TIMEOUT_S = 60


def selected(settings: Settings, config: Path, overrides: Sequence[str]) -> Artifact:
    """The run's plan, as it was certified last.

    Raises:
        UserError: the run is not that far yet.
    """
    plan: Artifact = made("select", settings, config, overrides)
    return latest(plan, ArtifactStore(settings.output))


def made(stage: str, settings: Settings, config: Path, overrides: Sequence[str]) -> Any:
    """What an earlier run has made in this stage.

    Raises:
        UserError: the run is not that far yet.
    """
    try:
        return Pipeline(settings, ReadOnlyStore(settings.output), lambda _: None).stage(stage)
    except NotMadeError as error:
        again = " ".join(["lspm run", str(config), *overrides])
        raise UserError(
            f"stage `{error.stage}` has not been run yet", field="output", value=settings.output, hint=f"First: {again}"
        ) from None


def serve(config: Path, overrides: Sequence[str], *, detach: bool, render_only: bool, dry_run: bool) -> None:
    """Deploy the plan.

    Raises:
        UserError: there is no plan yet, its certificate does not verify, or the port is taken.
    """
    settings = settings_from(config, overrides)
    artifact = selected(settings, config, overrides)
    file = _directory(settings) / "serve.yaml"
    document = render(artifact.uri, settings.serve)
    if dry_run:
        print(describe(*read_plan(artifact)))
        print(f"would be served at {url(settings.serve)}")
        return
    write(document, file)
    if render_only:
        print(f"wrote {file}\nnext: serve deploy {file}")
        return
    if running_cluster(settings.cluster):
        _on_cluster(settings, artifact)
        return
    _free_port(settings.serve)
    if detach:
        _in_background(config, overrides, settings)
    else:
        _here(settings, artifact)


def stop(config: Path, overrides: Sequence[str]) -> None:
    """Stop the endpoint that `lspm serve` started for this run.

    Raises:
        UserError: none is running, or it does not stop.
    """
    settings = settings_from(config, overrides)
    if running_cluster(settings.cluster):
        with connect(settings.cluster):
            undeploy(settings.serve.name)
        print("stopped")
        return
    state = _read_state(settings)
    if state is None:
        raise UserError("no endpoint of this run is running", field="stop", value=settings.output)
    os.kill(state["pid"], signal.SIGTERM)
    deadline = time.monotonic() + _STOP_TIMEOUT_S
    while _is_ours(state["pid"]):
        if time.monotonic() > deadline:
            raise UserError(f"the endpoint did not stop within {_STOP_TIMEOUT_S} s", field="pid", value=state["pid"])
        time.sleep(0.2)
    _state_file(settings).unlink(missing_ok=True)
    print("stopped")


def _on_cluster(settings: Settings, artifact: Artifact) -> None:
    view = StageView()
    with connect(settings.cluster), view.stage("serve") as finish:
        finish(deploy(artifact.uri, settings.serve, progress=view))
    print(f"serving on the cluster at {settings.serve.host}:{settings.serve.port}; `lspm stop` ends it")


def _here(settings: Settings, artifact: Artifact) -> None:
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    view = StageView()
    log = _directory(settings) / "logs" / time.strftime("serve-%Y%m%d-%H%M%S.log", time.gmtime())
    with connect(settings.cluster, log):
        with view.stage("serve") as finish:
            address = deploy(artifact.uri, settings.serve, progress=view)
            finish(address)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())  # ray.init has put its own in place
        state = {"pid": os.getpid(), "url": address, "started": time.time()}
        write_atomic(_state_file(settings), json.dumps(state).encode())
        print(f"serving at {address} (documentation at {address}/docs); Ctrl-C stops it", flush=True)
        while not ended.wait(1.0):
            pass
        undeploy(settings.serve.name)
    _state_file(settings).unlink(missing_ok=True)


def _in_background(config: Path, overrides: Sequence[str], settings: Settings) -> None:
    log = _directory(settings) / "logs" / "serve.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    _state_file(settings).unlink(missing_ok=True)
    command = [sys.executable, "-m", "lspm_ray.cli", "serve", str(config), *overrides]
    view = StageView()
    with view.stage("serve") as finish, log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
        view(f"starting, log: {log}")
        state = _wait(process, settings, log)
        finish(f"{state['url']} (process {state['pid']}, log {log})")


def _wait(process: subprocess.Popen[bytes], settings: Settings, log: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        state = _read_state(settings)
        if state is not None and state["pid"] == process.pid:
            return state
        if process.poll() is not None:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise UserError(f"the endpoint did not start: {lines[-1] if lines else ''}", field="serve", value=str(log))
        time.sleep(0.2)
    process.terminate()
    raise ResourceError(f"the endpoint did not start within {_START_TIMEOUT_S} s", field="serve", value=str(log))


def _free_port(config: ServeConfig) -> None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with closing(socket.socket(family, socket.SOCK_STREAM)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ResourceError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror}",
                field="serve.port",
                hint="Stop what listens there (`lspm stop CONFIG`?) or choose another: serve.port=8001",
            ) from None


def _directory(settings: Settings) -> Path:
    """Where serve.yaml, logs and the process number go: beside the artifacts, or in the cache if those are remote."""
    if "://" not in settings.output:
        return Path(settings.output).expanduser().absolute()
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return cache / "lspm_ray" / f"serve-{digest_of(settings.output)[:12]}"


def _state_file(settings: Settings) -> Path:
    return _directory(settings) / "serving.json"


def _read_state(settings: Settings) -> dict[str, Any] | None:
    file = _state_file(settings)
    if not file.is_file():
        return None
    state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return state if _is_ours(state["pid"]) else None


def _is_ours(pid: int) -> bool:
    """Whether the process exists and is an `lspm` one: the number may belong to another by now."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
        ended = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return False
    return b"lspm" in command and ended != "Z"
