"""The only `ray.init` of the project, and the check that work fits the cluster before it starts."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from lspm_ray.artifact import cpu_count
from lspm_ray.config import Config, digest_of
from lspm_ray.errors import ResourceError

DATA_TASK_CPUS = 0.25
"""CPUs that one Ray Data task or inference actor reserves. Below one, so that reading, inference and a training
worker fit beside each other even on a single core; Ray would otherwise wait for a free CPU for ever."""

TRAIN_START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
"""Environment variable: seconds until training workers must have started."""

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Without these two a resource request that nothing can meet waits for ever (Ray 2.60 defaults).
    TRAIN_START_TIMEOUT: "120",
    "RAY_DATA_USE_DATASOURCE_V2": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TOKENIZERS_PARALLELISM": "false",
    # Serve: HAProxy in front of the replicas costs an eighth of the CPU of the Python proxy (benchmarks/serving.py).
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}
_NO_PROGRESS_TIMEOUT_S = 300
_CONNECT_TIMEOUT_S = 10
_TURNS = "lspm-turns"
"""Namespace of the actors that stand for turns."""
_TURN_WAIT_S = 1.0
_TEMPORARY = "lspm-"
"""Prefix of the temporary directory of a cluster started here; the driver's process number follows."""


class ClusterConfig(Config):
    """Where the work runs.

    Attributes:
        address: of a running cluster (`auto`, `ray://host:port`, `host:port`); None starts one on this machine, or
            joins the one that `ray job submit` or RAY_ADDRESS names.
        num_cpus: CPUs of a cluster started here; None for all that this process may use.
        num_gpus: GPUs of a cluster started here; None for all.
        object_store_mb: memory of a cluster started here for data in flight.
        autoscales: the running cluster adds nodes when work asks for them (`ray up`, KubeRay). Training that says what
            it wants (`use_gpu: true` or `num_workers`) then waits for nodes; else it is refused if those that are there
            cannot hold it. Ray does not tell whether a cluster does, so it has to be said.
        nodes_within_s: how long it waits: for machines to start and install themselves.
    """

    address: str | None = None
    num_cpus: int | None = Field(None, ge=1)
    num_gpus: int | None = Field(None, ge=0)
    object_store_mb: int = Field(512, ge=100)
    autoscales: bool = False
    nodes_within_s: float = Field(1200.0, gt=0)

    @property
    def wait_for_nodes_s(self) -> float | None:
        """How long work may wait for nodes that are not there yet; None if none will come."""
        return self.nodes_within_s if self.autoscales and running_cluster(self) else None


def running_cluster(config: ClusterConfig) -> str | None:
    """Address of the cluster to join; None if one is to be started here. `ray job submit` sets RAY_ADDRESS."""
    return config.address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def connect(config: ClusterConfig, log_file: Path | None = None) -> Iterator[None]:
    """Connect to the configured cluster, or start one and stop it again.

    Args:
        config: which cluster.
        log_file: what Ray and its workers print goes there instead of the terminal.

    Raises:
        ResourceError: no cluster answers at the address.
    """
    prepare_environment(config)
    import ray

    if ray.is_initialized():
        configure_data()
        yield
        return
    address = running_cluster(config)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    temporary = None
    if address:
        options["address"] = address
    else:
        # Unix socket paths are limited to 107 bytes: a short directory of our own, removed again.
        _sweep()
        temporary = tempfile.mkdtemp(prefix=f"{_TEMPORARY}{os.getpid()}-")
        _separate_haproxy(Path(temporary))
        options |= {
            "num_cpus": config.num_cpus or cpu_count(),
            "num_gpus": config.num_gpus,
            "include_dashboard": False,
            "object_store_memory": config.object_store_mb * 2**20,
            "_temp_dir": temporary,
        }
    with _stderr_to(log_file):
        try:
            _init(options)
            configure_data()
            yield
        finally:
            if log_file is not None and temporary is not None:
                collect_logs(Path(temporary), log_file)
            ray.shutdown()
            if temporary is not None:
                shutil.rmtree(temporary, ignore_errors=True)


def _separate_haproxy(directory: Path) -> None:
    """Give Serve's HAProxy free ports and files of its own: Ray's fixed ones would meet those of a second cluster.

    Names are short: Ray puts a directory of 56 characters in between, and HAProxy takes at most 97 for a socket.
    """
    with ExitStack() as sockets:
        ports = []
        for _ in range(3):
            free = sockets.enter_context(socket.socket())
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    for name, value in {
        "RAY_SERVE_HAPROXY_STATS_PORT": ports[0],
        "RAY_SERVE_HAPROXY_METRICS_PORT": ports[1],
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": ports[2],
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": directory / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": directory / "a.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": directory,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": directory / "server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": directory / "m.sock",
    }.items():
        os.environ[name] = str(value)


def _sweep() -> None:
    """Remove the directories of clusters whose driver was killed: it could not do so itself."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_TEMPORARY}*-*"):
        pid = directory.name.removeprefix(_TEMPORARY).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists() and directory.owner() == Path.home().owner():
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _stderr_to(log_file: Path | None) -> Iterator[None]:
    """Send this process's standard error to the log: Ray's C++ core writes there, past every Python setting."""
    if log_file is None:
        yield
        return
    log_file.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    terminal = os.dup(2)
    try:
        with log_file.open("ab") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stderr.flush()
        os.dup2(terminal, 2)
        os.close(terminal)


def _init(options: dict[str, Any]) -> None:
    import ray

    address = options.get("address")
    if address:
        _check_reachable(address)
    try:
        ray.init(**options)
    except (ConnectionError, OSError, ValueError) as error:
        raise ResourceError(f"cannot connect: {error}", field="cluster.address", value=address) from None
    except Exception as error:
        # Ray has no finer class than this for "its own processes did not come up in time".
        raise ResourceError(f"a local Ray cluster did not start: {error}", field="cluster") from None


def _check_reachable(address: str) -> None:
    """Ray itself waits minutes for a head node that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ResourceError(
            f"no cluster answers there: {error.strerror or error}", field="cluster.address", value=address
        ) from None


def _require_token() -> None:
    """Make the cluster ask every client for a token; one that lives as long as this process unless the user has one."""
    if os.environ.setdefault("RAY_AUTH_MODE", "token") != "token":
        return
    own = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if not own and not (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def prepare_environment(config: ClusterConfig) -> None:
    """Set the variables that Ray reads when it is imported and when it starts processes; what the user has set wins.

    Call it before anything imports ray: Ray reads the authentication mode once, on import.
    """
    if not running_cluster(config):
        _require_token()
    wait = {} if config.wait_for_nodes_s is None else {TRAIN_START_TIMEOUT: f"{config.wait_for_nodes_s:g}"}
    for name, value in (_ENVIRONMENT | wait).items():
        os.environ.setdefault(name, value)
    wrapper = Path(__file__).parent / "serving" / "haproxy_loopback.sh"
    os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", str(wrapper))


def configure_data() -> None:
    """Settings of Ray Data for every dataset that this process makes."""
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.use_datasource_v2 = False
    context.execution_options.preserve_order = True
    context.execution_no_progress_timeout_s = _NO_PROGRESS_TIMEOUT_S
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def collect_logs(temporary: Path, target: Path) -> None:
    """Append what Ray's worker processes wrote to one file that outlives the cluster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("ab") as out:
        for file in sorted(temporary.glob("session_latest/logs/worker-*.*")):
            if file.stat().st_size:
                out.write(f"\n==== {file.name}\n".encode())
                out.write(file.read_bytes())


def totals() -> dict[str, float]:
    """CPUs and GPUs of the connected cluster."""
    import ray

    resources = ray.cluster_resources()
    return {"CPU": resources.get("CPU", 0.0), "GPU": resources.get("GPU", 0.0)}


def node_cpus() -> float:
    """CPUs of the smallest node that has any: what a task that must not be spread can count on."""
    import ray

    cpus = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return min((c for c in cpus if c), default=1.0)


def smallest_node() -> dict[str, float]:
    """What work that must not be spread can count on: the fewest CPUs that a node with any has, and the most GPUs."""
    import ray

    gpus = [node["Resources"].get("GPU", 0.0) for node in ray.nodes() if node["Alive"]]
    return {"CPU": node_cpus(), "GPU": max(gpus, default=0.0)}


@contextmanager
def turn_on_cluster(name: str, on_wait: Callable[[], None]) -> Iterator[None]:
    """Keep every other process of the cluster waiting that asks for the same name.

    The turn is an actor, which Ray ends together with the process that made it, however that dies.

    Args:
        name: of what is wanted.
        on_wait: called now and then while another has it.
    """
    import ray

    actor = ray.remote(num_cpus=0, max_restarts=0)(_Turn)
    # Not in the placement group of a trial, which may be full.
    options = {"name": digest_of(name), "namespace": _TURNS, "scheduling_strategy": "DEFAULT"}
    while True:
        try:
            turn = actor.options(**options).remote()
            break
        except ValueError:
            on_wait()
            time.sleep(_TURN_WAIT_S)
    try:
        yield
    finally:
        ray.kill(turn)


class _Turn:
    """Whose turn it is: that of the process which made it."""


def preflight(
    what: str, need: dict[str, float], have: dict[str, float], *, setting: str, otherwise: str = "add nodes"
) -> None:
    """Refuse work that the cluster can never run, instead of waiting for ever.

    Args:
        what: the work, for the message.
        need: resources it holds at the same time.
        have: what the cluster has in total.
        setting: which setting to lower.
        otherwise: what else would help.

    Raises:
        ResourceError: says what is asked, what is there and what to change.
    """
    for resource, amount in need.items():
        if amount > have.get(resource, 0.0) + 1e-9:
            raise ResourceError(
                f"{what} needs {amount:g} {resource} at once, the cluster has {have.get(resource, 0.0):g}",
                field=setting,
                hint=f"Lower {setting}, or {otherwise}",
            )
