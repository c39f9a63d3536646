"""Masks on a toy BERT: how many weights they hide, which, when, and what is trained meanwhile."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from lspm_ray.errors import ConfigError, ModelError
from lspm_ray.models.layers import layer_linears
from lspm_ray.training.reparametrization import Reparametrization
from lspm_ray.training.reparametrizations.sparsity import Sparsity, _least_of_each_group, _smallest
from tests.toys import toy_model

IDS = torch.tensor([[2, 40, 41, 42, 3], [2, 50, 60, 3, 0]])
MASK = (IDS != 0).long()
NAME = "bert.encoder.layer.0.intermediate.dense"


def attached(**fields):
    model, sparsity = toy_model(), Sparsity.parse(fields)
    sparsity.attach(model)
    return model, sparsity


def chain(model, name=NAME):
    return model.get_submodule(name).parametrizations.weight


def zeros(model):
    return {name: int((linear.weight == 0).sum()) for name, linear in layer_linears(model).items()}


def test_it_is_found_by_name():
    assert Reparametrization.names() == ["fake_quantization", "sparsity"]
    made = Reparametrization.make({"reparametrization": "sparsity", "sparsity": 0.8})
    assert isinstance(made, Sparsity) and Reparametrization.make(made.spec()) == made


def test_attaching_changes_no_answer():
    for criterion in ("magnitude", "movement"):
        model, _ = attached(criterion=criterion)
        assert torch.equal(model(IDS, MASK).logits, toy_model()(IDS, MASK).logits)


def test_the_cubic_schedule():
    sparsity = Sparsity.parse({"sparsity": 0.8, "ramp_start": 0.2, "ramp_end": 0.6})
    assert [sparsity.share(done) for done in (0.0, 0.2, 0.6, 1.0)] == [0.0, 0.0, 0.8, 0.8]
    assert sparsity.share(0.4) == pytest.approx(0.8 * (1 - 0.5**3))
    assert [sparsity.settled(done) for done in (0.0, 0.59, 0.6, 1.0)] == [False, False, True, True]


def test_oneshot_is_done_before_the_first_step():
    sparsity = Sparsity.parse({"sparsity": 0.8, "schedule": "oneshot"})
    assert sparsity.share(0.0) == 0.8 and sparsity.settled(0.0)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.77])
def test_every_matrix_loses_exactly_its_share_and_nothing_else_changes(share):
    model, sparsity = attached(sparsity=share, schedule="oneshot")
    sparsity.advance(model, 0.0)
    linears = layer_linears(model)
    assert zeros(model) == {name: round(share * linear.weight.numel()) for name, linear in linears.items()}
    assert len(linears) == 12 and all(".layer." in name for name in linears)
    state, plain = toy_model().state_dict(), sparsity.plain_state(model)
    assert set(state) == set(plain)
    changed = {name for name in state if not torch.equal(state[name], plain[name])}
    assert changed == {f"{name}.weight" for name in linears}


def test_magnitude_hides_the_smallest():
    model, sparsity = attached(sparsity=0.6, schedule="oneshot")
    sparsity.advance(model, 0.0)
    mask, weight = chain(model)[0].mask, chain(model).original.abs()
    assert weight[~mask].max() <= weight[mask].min()


def test_what_magnitude_has_hidden_stays_hidden():
    model, sparsity = attached(sparsity=0.9, ramp_start=0.0)
    sparsity.advance(model, 0.2)
    before = chain(model)[0].mask.clone()
    with torch.no_grad():
        chain(model).original[~before] = 100.0
    sparsity.advance(model, 0.3)
    after = chain(model)[0].mask
    assert after.sum() < before.sum() and not (after & ~before).any()


def test_advancing_twice_changes_nothing_more():
    model, sparsity = attached(sparsity=0.9)
    sparsity.advance(model, 0.5)
    before = chain(model)[0].mask.clone()
    with torch.no_grad():
        chain(model).original.neg_().add_(1.0)
    sparsity.advance(model, 0.5)
    assert torch.equal(chain(model)[0].mask, before)


@pytest.mark.parametrize("criterion", ["magnitude", "movement"])
def test_two_of_four_at_every_stage(criterion):
    model, sparsity = attached(pattern="2:4", criterion=criterion, ramp_start=0.0, ramp_end=1.0)
    hidden = []
    for done in (0.05, 0.3, 0.9, 1.0):
        sparsity.advance(model, done)
        weight = model.get_submodule(NAME).weight
        assert ((weight == 0).unflatten(1, (-1, 4)).sum(-1) <= 2).all()
        hidden.append(int((weight == 0).sum()))
    assert hidden == sorted(set(hidden)) and hidden[-1] == weight.numel() // 2


def test_two_of_four_needs_groups_of_four():
    model = toy_model()
    model.bert.encoder.layer[1].output.dense = torch.nn.Linear(6, 32)
    with pytest.raises(ModelError, match=r"pattern: bert\.encoder\.layer\.1\.output\.dense has 6 inputs.*groups of 4"):
        Sparsity.parse({"pattern": "2:4"}).attach(model)


def test_scores_get_the_gradient_of_the_hidden_weight_times_the_weight():
    model, sparsity = attached(sparsity=0.5, criterion="movement", ramp_start=0.0)
    with torch.no_grad():
        chain(model)[0].scores.copy_(torch.arange(chain(model)[0].scores.numel()))
    sparsity.advance(model, 1.0)
    model(IDS, MASK).logits.sum().backward()
    scores, weight, mask = chain(model)[0].scores, chain(model).original, chain(model)[0].mask
    assert not mask.flatten()[:1024].any() and mask.flatten()[1024:].all()
    assert (weight.grad[~mask] == 0).all() and (weight.grad[mask] != 0).any()
    got = scores.grad.view_as(weight)
    assert torch.allclose(got[mask], weight.grad[mask] * weight[mask])
    assert (got[~mask] != 0).any()  # so that they can come back


def test_movement_follows_scores_alone():
    model, sparsity = attached(sparsity=0.5, criterion="movement", ramp_start=0.0)
    with torch.no_grad():
        chain(model)[0].scores.copy_(-chain(model).original.abs().flatten())
    sparsity.advance(model, 1.0)
    mask, weight = chain(model)[0].mask, chain(model).original.abs()
    assert weight[~mask].min() >= weight[mask].max()


def test_scores_are_not_decayed():
    model, _ = attached(criterion="movement")
    assert chain(model)[0].scores.ndim == 1


def test_equal_values_are_taken_in_order():
    values = torch.tensor([1.0, 0.0, 0.0, 0.0, 2.0])
    assert _smallest(values, 2).tolist() == [False, True, True, False, False]
    assert _smallest(values, 4).tolist() == [True, True, True, True, False]
    assert _smallest(values, 0).tolist() == [False] * 5
    assert _least_of_each_group(torch.tensor([[3.0, 1, 2, 4, 0, 0, 0, 0]])).tolist() == [
        [False, True, True, False, True, True, False, False]
    ]


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_it_trains_under_ddp(one_process):
    model, sparsity = attached(sparsity=0.5, criterion="movement", ramp_start=0.0)
    network = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-2)
    for done in (0.0, 0.5, 1.0):
        sparsity.advance(model, done)
        network(input_ids=IDS, attention_mask=MASK).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert set(zeros(model).values()) == {linear.weight.numel() // 2 for linear in layer_linears(model).values()}
    assert (chain(model)[0].scores != 0).any()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity: .*less than 1 \(got 1\.0\)"),
        ({"sparsity": -0.1}, r"sparsity: .*greater than or equal to 0"),
        ({"sparsity": 0.6, "pattern": "2:4"}, r"pattern: 2:4 is a sparsity of 0\.5.*not to 0\.6"),
        ({"pattern": "4:8"}, r"pattern: .*'unstructured' or '2:4'"),
        ({"criterion": "taylor"}, r"criterion: .*'magnitude' or 'movement'"),
        ({"criterion": "movement", "schedule": "oneshot"}, r"schedule: movement is only known.*take cubic"),
        ({"ramp_start": 0.7, "ramp_end": 0.7}, r"ramp_end: must be more than ramp_start \(0\.7\)"),
    ],
)
def test_settings_that_make_no_sense_are_named(fields, message):
    with pytest.raises(ConfigError, match=message):
        Sparsity.parse(fields)


def test_two_of_four_needs_no_quotes_in_yaml():
    import yaml

    assert Sparsity.parse(yaml.safe_load("pattern: 2:4")).pattern == "2:4"
