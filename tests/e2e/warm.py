"""`lspm` in forks of one process that has imported the libraries already: else every command spends seconds on that.

Each command is a process of its own, with its own environment, working directory and output, as if started by a shell.
`python -m tests.e2e.warm` is the process that is forked; it reads a request per line and answers with a line.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
# Nothing that starts threads, and not Ray: it reads its environment when it is imported.
LIBRARIES = ("torch", "transformers", "scipy.stats", "pyarrow.parquet", "lspm_ray.commands.run", "lspm_ray.cli")


class Command:
    """A command that was started, leader of its own process group.

    Args:
        lspm: what started it.
        arguments: of `lspm`.
        pid: process number.
        output: where the files `out` and `err` are.
    """

    def __init__(self, lspm: Lspm, arguments: list[str], pid: int, output: Path) -> None:
        self._lspm, self.arguments, self.pid, self._output = lspm, arguments, pid, output
        self._code: int | None = None

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self._wait(block=False)

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end of it, and read what it has printed."""
        code = self._wait(block=True)
        assert code is not None
        return subprocess.CompletedProcess(self.arguments, code, self.read("out"), self.read("err"))

    def read(self, name: str) -> str:
        """What it has printed so far to `out` or `err`."""
        return (self._output / name).read_text()

    def _wait(self, block: bool) -> int | None:
        if self._code is None:
            self._code = self._lspm.ask({"pid": self.pid, "block": block})
        return self._code


class Lspm:
    """Runs commands as a user would: `lspm("run", file)` returns when it has ended.

    Args:
        environment: of all commands.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="warm-")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.warm"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPO,
        )

    def __call__(self, *arguments: object, timeout: int = 300) -> subprocess.CompletedProcess[str]:
        return self.start(*arguments, timeout=timeout).wait()

    def start(self, *arguments: object, timeout: int = 300) -> Command:
        """Start a command; after `timeout` seconds it gets SIGALRM."""
        words, output = [str(word) for word in arguments], Path(tempfile.mkdtemp(dir=self._folder.name))
        request = {"arguments": words, "output": str(output), "directory": str(Path.cwd()), "timeout": timeout}
        return Command(self, words, self.ask(request), output)

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request to the process that is forked."""
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        """End the process that is forked."""
        self._server.communicate()
        self._folder.cleanup()


def answer() -> dict[str, Any] | None:
    """Answer requests until there are no more; in a forked process, return what it was forked for."""
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        found: int | None
        if "arguments" in request:
            found = os.fork()
            if found == 0:
                return dict(request)
        else:
            pid, status = os.waitpid(request["pid"], 0 if request["block"] else os.WNOHANG)
            found = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(found), flush=True)
    return None


def become(request: dict[str, Any]) -> None:
    """Be the command."""
    from lspm_ray.cli import main

    os.setsid()
    signal.alarm(request["timeout"])
    os.chdir(request["directory"])
    files = ((os.devnull, os.O_RDONLY), *((f"{request['output']}/{name}", os.O_WRONLY) for name in ("out", "err")))
    for number, (file, mode) in enumerate(files):
        opened = os.open(file, mode | os.O_CREAT, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["lspm", *request["arguments"]]
    main(request["arguments"])


if __name__ == "__main__":
    for library in LIBRARIES:
        importlib.import_module(library)
    wanted = answer()
    if wanted is not None:
        become(wanted)
