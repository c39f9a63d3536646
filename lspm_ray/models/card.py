"""Model cards in the Hugging Face manner."""

from collections.abc import Mapping
from pathlib import Path


def write_card(
    directory: Path, *, base: str, task: str, metrics: Mapping[str, float], relation: str = "finetune"
) -> None:
    """Write `README.md` with the metadata that the Hub and its tools read.

    Args:
        directory: the model directory.
        base: the model this one was made from; empty for one made in the same run.
        task: our name of the task.
        metrics: validation results to record.
        relation: `finetune` or `quantized`, as the Hub's `base_model_relation`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    is_hub_id = "/" in base and ":" not in base and not base.startswith((".", "/"))
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=task.replace("_", "-"),
        base_model=base if is_hub_id else None,
        base_model_relation=relation if is_hub_id else None,
    )
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in metrics.items())
    origin = f"Made from `{base}` by" if base else "Made by"
    text = (
        f"---\n{data.to_yaml()}\n---\n# {task.replace('_', ' ')} model\n\n{origin} lspm_ray.\n\n"
        f"| measure on the validation split | value |\n|---|---|\n{rows}\n\n"
        "The profile of the run that made it has these on held-out rows, with intervals.\n"
    )
    ModelCard(text).save(directory / "README.md")
