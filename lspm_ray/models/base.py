"""Stage `base`: the pretrained model is copied into the store: every node and every later run reads the same bytes."""

from lspm_ray.artifact import Artifact, ArtifactStore, Draft
from lspm_ray.models.directory import load_tokenizer
from lspm_ray.models.source import ModelConfig, copy, fingerprint, locate

STAGE = "base"


def base(model: ModelConfig, store: ArtifactStore, *, eos_pads: bool = False) -> Artifact:
    """The model as an artifact.

    Args:
        model: which one.
        store: where the copy goes.
        eos_pads: see `load_tokenizer`.

    Raises:
        ModelError: it does not exist, cannot be loaded safely, or has no tokenizer.
    """
    what = model.model_dump(mode="json") | {"content": fingerprint(model)}
    found = store.find(STAGE, store.key(STAGE, what, {}))
    if found is not None:
        return found
    source = locate(model)
    load_tokenizer(source, eos_pads=eos_pads)

    def build(draft: Draft) -> None:
        copy(source, draft.path)

    return store.make(STAGE, what, {}, build)
