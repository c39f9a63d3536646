"""Weights beside `model.onnx` are loaded from the model's directory and from nowhere else."""

import shutil

import onnx
import pytest

from lspm_ray.compression.export import export
from lspm_ray.errors import ModelError
from lspm_ray.inference.predictor import load_predictor
from lspm_ray.models.directory import Variant, write_variant
from tests.inference.test_predictors import examples
from tests.toys import toy_model_dir


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    root = tmp_path_factory.mktemp("plain")
    (root / "onnx").mkdir()
    export(toy_model_dir(root / "torch"), root / "onnx", "fp32")
    return root / "onnx"


@pytest.fixture
def directory(plain, tmp_path):
    """A model whose weights lie in `weights/all.bin`."""
    made = tmp_path / "model"
    shutil.copytree(plain, made)
    (made / "weights").mkdir()
    onnx.save(onnx.load(made / "model.onnx"), made / "model.onnx", save_as_external_data=True, location="all.bin")
    point_to(made, "weights/all.bin")
    shutil.move(made / "all.bin", made / "weights" / "all.bin")
    return made


def point_to(directory, location):
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    onnx.save(model, directory / "model.onnx")


def test_weights_inside_are_loaded(plain, directory):
    assert (directory / "model.onnx").stat().st_size < 30_000
    found, expected = (load_predictor(made, threads=1).predict(examples()) for made in (directory, plain))
    assert (found == expected).all()


def test_other_runtimes_that_read_the_graph_refuse_too(directory, tmp_path):
    shutil.copyfile(directory / "weights" / "all.bin", tmp_path / "all.bin")
    point_to(directory, "../all.bin")
    write_variant(directory, Variant(runtime="openvino", precision="fp32"))
    with pytest.raises(ModelError, match="weights must be in files of the model's directory"):
        load_predictor(directory, threads=1)


@pytest.mark.parametrize("location", ["../all.bin", "weights/../../all.bin", "/absolute", "linked.bin", "missing", ""])
def test_weights_elsewhere_are_refused(directory, tmp_path, monkeypatch, location):
    shutil.copyfile(directory / "weights" / "all.bin", tmp_path / "all.bin")
    (directory / "linked.bin").symlink_to(tmp_path / "all.bin")
    point_to(directory, str(tmp_path / "all.bin") if location == "/absolute" else location)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *_, **__: pytest.fail("a session was made"))
    with pytest.raises(ModelError, match=r"model\.onnx: .*weights must be in files of the model's directory"):
        load_predictor(directory, threads=1)


def test_weights_of_nodes_count_too(directory, tmp_path):
    model = onnx.load(directory / "model.onnx", load_external_data=False)
    tensor = onnx.TensorProto(name="hidden", data_type=onnx.TensorProto.FLOAT, dims=[1])
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    model.graph.node.append(onnx.helper.make_node("Constant", [], ["unused"], value=tensor))
    onnx.save(model, directory / "model.onnx")
    with pytest.raises(ModelError, match=r"hidden: weights must be.*\.\./secret"):
        load_predictor(directory, threads=1)


def test_a_file_that_is_no_graph(directory):
    (directory / "model.onnx").write_bytes(b"not a graph")
    with pytest.raises(ModelError, match="this is not an ONNX graph"):
        load_predictor(directory, threads=1)
