import pickle

import pytest

from lspm_ray.compression.method import Method
from lspm_ray.errors import ConfigError, ResourceError, UserError
from lspm_ray.inference.predictor import Runtime
from lspm_ray.plugin import Plugin
from lspm_ray.tasks import Task
from lspm_ray.validators import Validator

POINTS = [Task, Runtime, Validator, Method]


@pytest.mark.parametrize("point", POINTS, ids=lambda p: p.kind)
def test_every_plugin_loads_and_survives_its_yaml_form(point: type[Plugin]):
    assert point.names()
    for name in point.names():
        plugin = point.make(name)
        assert plugin.name == name
        assert point.make(plugin.spec()) == plugin


@pytest.mark.parametrize("point", POINTS, ids=lambda p: p.kind)
def test_unknown_plugin_lists_those_there_are(point: type[Plugin]):
    with pytest.raises(ConfigError) as caught:
        point.make("no_such_thing")
    assert all(name in str(caught.value) for name in point.names())


def test_unknown_field_lists_valid_ones():
    with pytest.raises(ConfigError, match=r"headz: unknown key; did you mean `heads`"):
        Method.make({"method": "prune", "headz": 1})


@pytest.mark.parametrize("spec", [{}, {"method": 3}, {"method": None}, None, 3, ["prune"]], ids=str)
def test_spec_must_name_the_plugin(spec):
    with pytest.raises(ConfigError, match="say which method"):
        Method.make(spec)


@pytest.mark.parametrize("cls", [UserError, ResourceError])
def test_errors_survive_being_sent_between_processes(cls):
    error = cls("bad", field="a.b", value=3, valid=[1, 2], hint="Do this")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is cls
    assert str(again) == str(error) == "a.b: bad (got 3); valid: 1, 2. Do this"
