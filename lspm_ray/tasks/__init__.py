"""Tasks. Training, evaluation, profiling and serving use the same object: what is measured is what is served."""

from lspm_ray.tasks.contract import Answer, Encoded, Task

__all__ = ["Answer", "Encoded", "Task"]
