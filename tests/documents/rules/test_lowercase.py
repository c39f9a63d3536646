from lspm_ray.documents.rule import Rule


def test_makes_every_letter_small_and_leaves_the_rest():
    assert Rule.make("lowercase").apply("ÉTÉ in New York,\nΑΘΗΝΑΣ 42") == "été in new york,\nαθηνας 42"
