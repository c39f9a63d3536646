"""Deploy a plan on the connected Ray cluster, and take it down again."""

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from lspm_ray.cluster import preflight, totals
from lspm_ray.errors import ResourceError, UserError
from lspm_ray.selection.plan import Plan
from lspm_ray.serving.bundle import Bundle, load_bundle
from lspm_ray.serving.config import ServeConfig, is_inline, serves_full, why_unaudited
from lspm_ray.serving.render import render

NO_PROGRESS_TIMEOUT_S = 180.0
_POLL_S = 0.25
_RUNNING = "RUNNING"
_FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


class DeployError(UserError):
    """The endpoint did not start."""


def deploy(
    plan_uri: str,
    config: ServeConfig,
    *,
    no_progress_timeout_s: float = NO_PROGRESS_TIMEOUT_S,
    progress: Callable[[str], None] | None = None,
) -> str:
    """Deploy and wait until requests are answered.

    A running endpoint is replaced without an interruption. As with `serve deploy`, applications of an earlier config
    that are not in this one are deleted.

    Args:
        plan_uri: the select artifact.
        config: settings of the endpoint.
        no_progress_timeout_s: give up after this long without any change in the status.
        progress: told the status whenever it changes.

    Returns:
        The endpoint's URL.

    Raises:
        ArtifactError: see `load_bundle`.
        CertificateError: see `load_bundle`.
        ResourceError: the replicas do not fit the cluster, or Serve already listens somewhere else.
        DeployError: the application failed; with the message of the replica that did.
    """
    document = render(plan_uri, config)
    bundle = load_bundle(plan_uri)
    bundle.verify()
    check_resources(bundle.plan, config, totals(), audits_full(bundle, config))
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(
        proxy_location=document["proxy_location"],
        http_options=document["http_options"],
        logging_config=document["logging_config"],
    )
    client = _get_global_client()
    if (client.http_config.host, client.http_config.port) != (config.host, config.port):
        raise ResourceError(
            f"Serve already runs on this cluster, at {client.http_config.host}:{client.http_config.port}",
            field="serve.port",
            value=f"{config.host}:{config.port}",
            hint="Use that address, or stop Serve first: `serve shutdown`",
        )
    client.deploy_apps(ServeDeploySchema.model_validate(document))
    wait_until_running(
        lambda: _status(config.name), timeout_s=no_progress_timeout_s, progress=progress or (lambda _: None)
    )
    client.wait_for_proxies_serving(wait_for_applications_running=True)
    return url(config)


def audits_full(bundle: Bundle, config: ServeConfig) -> bool:
    """The full model is deployed although the plan does not serve it: for the audit, and for after a revocation."""
    certificate = bundle.certificate
    audited = why_unaudited(bundle.plan, certificate, config) is None
    return audited and certificate is not None and not serves_full(bundle.plan, certificate)


def check_resources(plan: Plan, config: ServeConfig, have: dict[str, float], audits_full: bool = False) -> None:
    """Refuse an endpoint that the cluster can never hold.

    Raises:
        ResourceError: says what it needs, what there is and what to lower.
    """
    check_fits(len(plan.stages) - is_inline(plan, config) + audits_full, config, have)


def check_fits(models: int, config: ServeConfig, have: dict[str, float]) -> None:
    """Refuse the ingress and `models` deployments beside it, if the cluster can never hold their `min_replicas`.

    Raises:
        ResourceError: says what they need, what there is and what to lower.
    """
    need: dict[str, float] = {"CPU": 0.0, "GPU": 0.0}
    for count, replica in ((1, config.ingress), (models, config.variant)):
        need["CPU"] += count * replica.min_replicas * replica.cpus
        need["GPU"] += count * replica.min_replicas * replica.gpus
    preflight("the endpoint", {"CPU": need["CPU"]}, have, setting="serve.variant.cpus")
    preflight("the endpoint", {"GPU": need["GPU"]}, have, setting="serve.variant.gpus")


def undeploy(name: str | None = None) -> None:
    """Delete the application, or without a name stop Serve with everything on it."""
    from ray import serve

    if name is None:
        serve.shutdown()
    else:
        serve.delete(name)


def url(config: ServeConfig) -> str:
    """Where clients on this machine find the endpoint."""
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host  # noqa: S104
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def wait_until_running(
    status: Callable[[], Mapping[str, Any]],
    *,
    timeout_s: float,
    progress: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Wait for an application.

    Args:
        status: gives `{"status", "message", "deployments": {name: {"status", "message", "replicas"}}}`.
        timeout_s: give up after this long without any change.
        progress: told each change.
        clock: seconds.
        sleep: waits.

    Raises:
        DeployError: it failed.
        ResourceError: nothing changed for `timeout_s`.
    """
    seen, since = "", clock()
    while True:
        now = status()
        text = describe(now)
        if text != seen:
            seen, since = text, clock()
            progress(text)
        if now["status"] == _RUNNING:
            return
        if now["status"] in _FAILED:
            raise DeployError(f"the endpoint did not start: {failure(now)}")
        if clock() - since > timeout_s:
            raise ResourceError(
                f"no progress for {timeout_s:g} s: {text}",
                field="serve",
                hint="Replicas that do not fit wait for ever: lower serve.variant.cpus, serve.ingress.cpus or "
                "min_replicas, or add nodes",
            )
        sleep(_POLL_S)


def describe(status: Mapping[str, Any]) -> str:
    """One line: the application's status and that of each deployment."""
    parts = [f"{name} {found['status'].lower()}" for name, found in sorted(status["deployments"].items())]
    return ": ".join(part for part in (status["status"].lower(), ", ".join(parts)) if part)


def failure(status: Mapping[str, Any]) -> str:
    """The sentence that says what went wrong, out of Ray's tracebacks."""
    messages = [found["message"] for found in status["deployments"].values() if found["status"] in _FAILED]
    text = "\n".join([*messages, status["message"]])
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if _is_error(line)]
    return errors[-1] if errors else " ".join(lines[-3:])


def _is_error(line: str) -> bool:
    """The last line of a Python traceback: `module.SomeError: what happened`."""
    name, separator, _ = line.partition(": ")
    return bool(separator) and name.replace(".", "").replace("_", "").isalnum() and name.endswith(("Error", "Down"))


def _status(name: str) -> dict[str, Any]:
    from ray import serve

    application = serve.status().applications.get(name)
    if application is None:
        return {"status": "NOT_STARTED", "message": "", "deployments": {}}
    return {
        "status": str(application.status.value),
        "message": application.message,
        "deployments": {
            deployment: {
                "status": str(found.status.value),
                "message": found.message,
                "replicas": {str(state): count for state, count in found.replica_states.items()},
            }
            for deployment, found in application.deployments.items()
        },
    }
