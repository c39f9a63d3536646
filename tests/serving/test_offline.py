import pytest

from lspm_ray.errors import ConfigError, ResourceError
from lspm_ray.serving.config import OfflineConfig
from lspm_ray.serving.offline import actors_for
from lspm_ray.settings import Settings


def settings(**predict: int) -> Settings:
    data = {"source": "data.csv", "text": "text", "label": "label"}
    return Settings.parse({"output": "runs/x", "data": data, "model": {"name": "m"}, "predict": predict})


@pytest.mark.parametrize(("cpus", "actors"), [(0.5, 1), (1.0, 1), (2.0, 1), (16.0, 15)])
def test_an_actor_per_cpu_beside_the_reader(cpus: float, actors: int) -> None:
    assert actors_for(OfflineConfig(), {"CPU": cpus}) == actors


def test_the_setting_that_the_error_names_exists() -> None:
    assert actors_for(settings(actors=3).predict, {"CPU": 1.0}) == 3
    with pytest.raises(ResourceError, match=r"^predict\.actors: offline prediction with 4 actors needs 1\.25 CPU"):
        actors_for(settings(actors=4).predict, {"CPU": 1.0})
    with pytest.raises(ConfigError, match=r"predict\.actors"):
        settings(actors=0)
