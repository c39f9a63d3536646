"""Everything that can be known to be wrong before work starts, is found here."""

from __future__ import annotations

from collections.abc import Sequence

from lspm_ray.artifact import cpu_count, filesystem
from lspm_ray.corpus.check import check_columns
from lspm_ray.errors import ConfigError
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.models.source import locate
from lspm_ray.settings import Settings
from lspm_ray.training.trainer import resolve


def check(settings: Settings, missing: Sequence[str]) -> None:
    """Check the inputs of the stages that are still to do, without a cluster.

    Raises:
        UserError: the output cannot be written, a column is missing, the model cannot be used, or a cluster that
            would be started here is too small for the training workers.
    """
    _writable(settings.output)
    if "base" in missing:
        load_tokenizer(locate(settings.model))
    if "prepare" in missing:
        check_columns(settings.data)
    if settings.cluster.address is None:
        have = {"CPU": float(settings.cluster.num_cpus or cpu_count()), "GPU": float(settings.cluster.num_gpus or 0)}
        if settings.cluster.num_gpus is None:
            import torch

            have["GPU"] = float(torch.cuda.device_count())
        if "finetune" in missing:
            resolve(settings.finetune.workers, have)
        if "compress" in missing and settings.compress.workers is not None:
            resolve(settings.compress.workers, have, "compress.workers")


def _writable(output: str) -> None:
    fs, path = filesystem(output)
    try:
        fs.create_dir(path, recursive=True)
    except OSError as error:
        raise ConfigError(f"cannot be created: {error}", field="output", value=output) from None
