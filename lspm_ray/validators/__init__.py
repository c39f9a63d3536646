"""Validators: how far an answer can be trusted, as a number. Thresholds are not theirs: the certificate has them."""

from lspm_ray.validators.contract import Check, Examples, Outputs, State, Training, Validator

__all__ = ["Check", "Examples", "Outputs", "State", "Training", "Validator"]
