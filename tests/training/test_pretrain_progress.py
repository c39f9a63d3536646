from lspm_ray.training.pretrain import _Narrator


def said(**values: object) -> str:
    lines: list[str] = []
    _Narrator(lines.append)(values)
    (line,) = lines
    return line


def test_a_line_of_progress() -> None:
    assert said(
        step=1200,
        steps=5000,
        loss=4.25,
        tokens_per_s=10234.5,
        mfu=0.347,
        learning_rate=1e-3,
        gradient_norm=0.512,
        data_wait_share=0.0012,
        seconds_left=754.9,
    ) == (
        "step 1,200/5,000, loss 4.2500, 10,234 tokens/s, MFU 35 %, rate 1.00e-03, gradient 0.51, "
        "waiting for data 0.1 %, 12:34 left"
    )


def test_a_validation() -> None:
    line = said(validated=True, step=600.0, steps=5000, validation_loss=5.0, train_loss=5.5)
    assert line == "step 600/5,000: validation loss 5.0000 (perplexity 148.4), train loss 5.5000"


def test_a_loss_beyond_all_numbers_has_a_perplexity_too() -> None:
    assert "perplexity" in said(validated=True, step=1.0, steps=2, validation_loss=1e9, train_loss=1e9)


def test_warnings_stand_out_from_notes() -> None:
    assert said(warning="damaged") == "! damaged"
    assert said(note="resumed at step 8 of 12") == "resumed at step 8 of 12"
