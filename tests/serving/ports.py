"""Ports for a Serve of our own, so that it does not meet another one on the machine."""

import atexit
import os
import shutil
import socket
import tempfile
from pathlib import Path


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def separate_haproxy() -> None:
    """Give the HAProxy of this process's Ray cluster ports and files of its own; must run before Ray starts."""
    directory = Path(tempfile.gettempdir()) / f"lspm-haproxy-{os.getpid()}"
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    for name, value in {
        "RAY_SERVE_HAPROXY_STATS_PORT": free_port(),
        "RAY_SERVE_HAPROXY_METRICS_PORT": free_port(),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": free_port(),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": directory / "haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": directory / "admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": directory,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": directory / "server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": directory / "metrics.sock",
    }.items():
        os.environ.setdefault(name, str(value))
