from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from lspm_ray.artifact import Artifact, ArtifactStore
from lspm_ray.errors import ArtifactError, ConfigError
from lspm_ray.serving.app import BuildArgs
from lspm_ray.serving.config import ServeConfig
from lspm_ray.serving.render import IMPORT_PATH, render, write

EXAMPLES = Path(__file__).parents[2] / "serve_configs"


def test_the_rendered_config_is_one_that_serve_deploy_takes(toy_select: Artifact, tmp_path: Path) -> None:
    config = ServeConfig.parse({"port": 8123, "variant": {"threads": 2}})
    write(render(toy_select.uri, config), tmp_path / "run" / "serve.yaml")
    document = yaml.safe_load((tmp_path / "run" / "serve.yaml").read_text(encoding="utf-8"))
    schema = ServeDeploySchema.model_validate(document)
    (application,) = schema.applications
    assert application.import_path == IMPORT_PATH
    assert (schema.http_options.host, schema.http_options.port) == ("127.0.0.1", 8123)
    args = BuildArgs.parse(document["applications"][0]["args"])
    assert args.serve == config
    assert args.plan == toy_select.uri


def test_the_server_s_deadline_is_longer_than_the_router_s(toy_select: Artifact) -> None:
    limits = {"receive_timeout_s": 2, "request_timeout_s": 3}
    document = render(toy_select.uri, ServeConfig.parse({"limits": limits}))
    assert document["http_options"]["request_timeout_s"] > 5


def test_the_plan_s_path_is_made_absolute(
    toy_select: Artifact, toy_store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_store.root)
    document = render(Path(toy_select.uri).name, ServeConfig())
    assert document["applications"][0]["args"]["plan"] == toy_select.uri


def test_a_missing_plan_is_refused(toy_store: ArtifactStore) -> None:
    with pytest.raises(ArtifactError, match="no such artifact"):
        render(f"{toy_store.root}/select-nothing", ServeConfig())


def test_every_committed_example_is_valid() -> None:
    files = sorted(EXAMPLES.glob("*.yaml"))
    assert files
    for file in files:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
        schema = ServeDeploySchema.model_validate(document)
        assert schema.http_options.host == "127.0.0.1"
        for application in document["applications"]:
            assert application["import_path"] == IMPORT_PATH
            BuildArgs.parse(application["args"])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"plan": "x", "serve": {"prot": 1}}, r"serve\.prot: unknown key; did you mean `port`"),
        ({"serve": {}}, r"plan: required"),
        ({"plan": "x", "serve": {"port": 0}}, r"serve\.port: .*greater than or equal to 1"),
        (
            {"plan": "x", "serve": {"variant": {"min_replicas": 3}}},
            r"serve\.variant: max_replicas must be at least min_replicas \(3\)",
        ),
        ({"plan": "x", "serve": {"name": "a b"}}, r"serve\.name"),
    ],
)
def test_mistakes_in_the_args_are_named(raw: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BuildArgs.parse(raw)


def test_the_example_shows_every_setting_with_its_default() -> None:
    document = yaml.safe_load((EXAMPLES / "cascade.yaml").read_text(encoding="utf-8"))
    args = BuildArgs.parse(document["applications"][0]["args"])
    assert args.serve == ServeConfig()
    shown = set(document["applications"][0]["args"]["serve"])
    assert shown | {"host", "port", "name"} == set(ServeConfig.model_fields)
