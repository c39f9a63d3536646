"""The plan as a Ray Serve config file."""

import json
from pathlib import Path
from typing import Any

import yaml

from lspm_ray.artifact import open_artifact, write_atomic
from lspm_ray.serving.bundle import check_not_revoked, load_bundle
from lspm_ray.serving.config import ServeConfig

IMPORT_PATH = "lspm_ray.serving.app:build"
_SLACK_S = 5.0
_HEAD = """\
# Made by `lspm serve`; `serve deploy` takes it as it is. What may be edited: http_options and args.serve.
# The certificate covers args.plan as it is: another plan comes from another `lspm select`.
"""


def render(plan_uri: str, config: ServeConfig) -> dict[str, Any]:
    """The Serve config that deploys a plan; plain JSON values.

    Args:
        plan_uri: the select artifact, local path or URI.
        config: settings of the endpoint.

    Raises:
        ArtifactError: see `load_bundle`.
        CertificateError: see `load_bundle` and `check_not_revoked`.
    """
    check_not_revoked(load_bundle(plan_uri), config)
    limits = config.limits
    application = {
        "name": config.name,
        "route_prefix": "/",
        "import_path": IMPORT_PATH,
        "args": {"plan": open_artifact(plan_uri).uri, "serve": config.model_dump(mode="json")},
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {
            "host": config.host,
            "port": config.port,
            # The router's own deadlines are shorter and answer in JSON: this one is for a router that hangs.
            "request_timeout_s": limits.receive_timeout_s + limits.request_timeout_s + _SLACK_S,
        },
        "logging_config": {"enable_access_log": False},
        "applications": [application],
    }


def write(document: dict[str, Any], path: Path) -> None:
    """Write a rendered config as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False, allow_unicode=True, width=120)
    write_atomic(path, (_HEAD + text).encode())
