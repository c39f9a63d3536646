"""torch.compile for predictors: everything is compiled on loading, nothing while serving."""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import sysconfig
import tempfile
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lspm_ray.errors import ModelError, ResourceError
from lspm_ray.inference.runtimes.torch import TorchPredictor

# Sizes of 1 are compiled into a graph, all others are variables of it: one graph for a row alone and one for several
# rows serve every batch and length. A graph per bucket of lengths would pad more, and take a minute each to compile.
_SHAPES = ((1, 7), (2, 9))

_MOST_REPAIRS = 100
"""Files of the cache that are made anew; there is one for each kernel, and then something else is wrong."""

_CACHE = "lspm-ray-inductor"
_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


class CompiledPredictor(TorchPredictor):
    """A model compiled with TorchInductor, dynamic in rows and tokens. What would need another graph runs eagerly.

    Args:
        model: as for `TorchPredictor`.
        labels: label names in the order of the logits.
        pad_id: token id used for padding.
        threads: CPU threads that the graphs are made for.

    Raises:
        ResourceError: the machine has no compiler.
        ModelError: the model cannot be compiled.
    """

    stance = "eager_on_recompile"

    def __init__(self, model: Any, labels: list[str], pad_id: int, threads: int) -> None:
        super().__init__(model, labels, pad_id)
        check_compiler(model.device.type)
        os.environ[_CACHE_VARIABLE] = str(_cache())
        self._loading = True
        self._turn = threading.Lock()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            self._compile(threads)
        self._loading = False

    def _compile(self, threads: int) -> None:
        import torch._dynamo.config
        import torch._inductor.config

        inductor = {
            "cpp.threads": threads,  # part of the cache's key
            "compile_threads": 1,  # others would be processes that outlive loading
            "cpp_cache_precompile_headers": False,  # they go to a directory under /tmp that anybody can make first
        }
        dynamo = {"recompile_limit": 1000, "fail_on_recompile_limit_hit": True}
        self._compiled: Any = torch.compile(self.model, dynamic=True)
        with torch._inductor.config.patch(inductor), torch._dynamo.config.patch(dynamo):
            for rows, tokens in _SHAPES:
                ids = np.full((rows, tokens), _some_token(self.model), dtype=np.int64)
                self._warm_up(ids, np.ones_like(ids))

    def _warm_up(self, ids: NDArray[np.int64], mask: NDArray[np.int64]) -> None:
        from torch._dynamo.exc import TorchDynamoException

        repairs = 0
        while True:
            try:
                self.forward(ids, mask)
                return
            except TorchDynamoException as error:
                repairs += 1
                if repairs > _MOST_REPAIRS or not remove_unfinished(error):
                    first = str(error).strip().splitlines()[0]
                    raise ModelError(
                        f"the model cannot be compiled: {first}", field="runtime", value=self.model.config.model_type
                    ) from error

    def call(self, ids: Any, mask: Any) -> Any:
        """See `TorchPredictor.call`."""
        import torch

        stance = "default" if self._loading else self.stance
        with self._turn, torch.compiler.set_stance(stance):  # a stance is that of all threads
            return self._compiled(input_ids=ids, attention_mask=mask).logits


def _some_token(model: Any) -> int:
    """The end token where there is one: some families look for it."""
    end = getattr(model.config, "eos_token_id", None)
    return end if isinstance(end, int) else 1


def remove_unfinished(error: BaseException) -> bool:
    """Remove the compiled file that could not be loaded: a process was killed while it wrote it.

    Nobody else would, and no process could ever load the model on this machine.

    Returns:
        Whether that is what was wrong.
    """
    inner = getattr(error, "inner_exception", None)
    if not isinstance(inner, ImportError) or inner.path is None:
        return False
    file = Path(inner.path)
    if not file.is_relative_to(os.environ[_CACHE_VARIABLE]) or not file.is_file():
        return False
    file.unlink()
    return True


def check_compiler(device: str) -> None:
    """Refuse to compile where that cannot work.

    Raises:
        ResourceError: a C++ compiler, Python's headers or Triton is missing.
    """
    from torch.utils._triton import has_triton

    if device != "cpu":
        if not has_triton():
            raise ResourceError("torch.compile needs Triton on this GPU, which is not there", field="runtime")
        return
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ResourceError(
            "torch.compile needs a C++ compiler, and this machine has none",
            field="runtime",
            value=compiler,
            hint="Install g++ on every node that measures or serves the model, or name a compiler in CXX",
        )
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise ResourceError(
            "torch.compile needs Python's headers, and this machine has none",
            field="runtime",
            value=str(header),
            hint="Install them (python3-dev) on every node that measures or serves the model",
        )


def _cache() -> Path:
    """The directory of compiled code: the one that the user names, else one that nobody else can write to.

    PyTorch's default is a name under /tmp that any user can guess and make first; who can write there can run code
    here.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    named = os.environ.get(_CACHE_VARIABLE)
    if named and named != default_cache_dir():
        return Path(named)
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    directory = home / _CACHE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_private(directory):
            return directory
    except OSError:
        pass
    made = tempfile.mkdtemp(prefix=f"{_CACHE}-")
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return Path(made)


def _is_private(directory: Path) -> bool:
    """Whether no other user but root can write to a directory, or put another one in its place."""
    others = stat.S_IWGRP | stat.S_IWOTH
    mine, above = directory.lstat(), directory.parent.stat()
    return (
        stat.S_ISDIR(mine.st_mode)
        and mine.st_uid == os.geteuid()
        and not mine.st_mode & others
        and above.st_uid in (0, os.geteuid())
        and (not above.st_mode & others or bool(above.st_mode & stat.S_ISVTX))
    )
