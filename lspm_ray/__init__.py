"""Serve a pretrained model cheaply, with a certificate for its answers, on Ray."""

from lspm_ray.library import quiet_torchao

__version__ = "0.1.0"

quiet_torchao()
