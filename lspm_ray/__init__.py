"""Serve a pretrained model cheaply, with a certificate for its answers, on Ray."""

__version__ = "0.1.0"
