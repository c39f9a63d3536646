"""Validators: how far an answer can be trusted, as a number. Thresholds are not theirs: the certificate has them."""

from lspm_ray.validators.contract import Validator

__all__ = ["Validator"]
