import onnx
import pytest

from lspm_ray.artifact import ArtifactStore
from lspm_ray.compression import graph as graph_module
from lspm_ray.compression.export import export
from lspm_ray.compression.graph import DATA_FILE, Graph, part_of, rewrite
from lspm_ray.compression.int8 import Int8
from lspm_ray.errors import ModelError
from lspm_ray.inference.predictor import load_predictor
from tests.inference.test_predictors import examples
from tests.toys import toy_model_dir


@pytest.mark.parametrize(
    ("output", "part"),
    [
        ("/model/bert/encoder/layer.3/attention/output/dense/MatMul_output_0", "layer.3.attention"),
        ("/model/bert/encoder/layer.11/output/dense/MatMul_output_0", "layer.11.ffn"),
        ("/model/distilbert/transformer/layer.0/ffn/lin1/MatMul_output_0", "layer.0.ffn"),
        ("/model/transformer/h.5/attn/c_attn/Gemm_output_0", "layer.5.attention"),
        ("/model/model/layers.2/self_attn/q_proj/MatMul_output_0", "layer.2.attention"),
        ("/model/transformer/encoder/block.1/layer.0/SelfAttention/q/MatMul_output_0", "layer.1.attention"),
        ("/model/transformer/decoder/block.1/layer.2/DenseReluDense/wo/MatMul_output_0", "decoder.layer.1.ffn"),
        ("/model/bert/pooler/dense/Gemm_output_0", "classifier"),
        ("logits", "classifier"),
    ],
)
def test_part_of_a_node(output, part):
    assert part_of(onnx.helper.make_node("MatMul", ["x", "w"], [output], "")) == part


def test_weights_that_one_file_cannot_hold(tmp_path, monkeypatch):
    source = toy_model_dir(tmp_path / "torch")
    store = ArtifactStore(str(tmp_path / "store"))
    monkeypatch.setattr(graph_module, "MAX_FILE_BYTES", 20_000)

    def build(draft):
        file = export(source, draft.path, "int8")
        whole = file.stat().st_size + (draft.path / DATA_FILE).stat().st_size
        rewrite(file, lambda graph: Int8(graph, reduce_range=True))
        assert file.stat().st_size + (draft.path / DATA_FILE).stat().st_size < whole

    made = store.make("variant", {}, {}, build)
    assert {"model.onnx", DATA_FILE} <= set(made.manifest.files)
    found = load_predictor(made.local(), threads=1).predict(examples())
    reference = load_predictor(source, threads=1).predict(examples())
    assert (found.argmax(1) == reference.argmax(1)).mean() > 0.9


def test_a_graph_that_shrinks_below_the_limit_leaves_no_weights_behind(tmp_path, monkeypatch):
    (tmp_path / "onnx").mkdir()
    monkeypatch.setattr(graph_module, "MAX_FILE_BYTES", 80_000)
    file = export(toy_model_dir(tmp_path / "torch"), tmp_path / "onnx", "int8")
    assert (file.parent / DATA_FILE).stat().st_size > 80_000
    rewrite(file, lambda graph: Int8(graph, reduce_range=True))
    assert not (file.parent / DATA_FILE).exists() and file.stat().st_size < 80_000


def test_nothing_to_quantise(tmp_path):
    (tmp_path / "onnx").mkdir()
    file = export(toy_model_dir(tmp_path / "torch"), tmp_path / "onnx", "fp32")
    with pytest.raises(ModelError, match="no weights that can be quantised"):
        rewrite(file, lambda _: lambda _: None)


def test_a_weight_behind_an_identity_is_found():
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    nodes = [helper.make_node("Identity", ["w"], ["same"]), helper.make_node("MatMul", ["x", "same"], ["y"], "m")]
    made = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones((4, 4), dtype=np.float32), "w")],
    )
    graph = Graph(helper.make_model(made))
    assert graph.parts(Int8(graph, True)) == {"classifier": 16}
