from benchmarks.work import multiply_adds
from benchmarks.workloads import Encoder


def test_an_encoder_takes_what_its_shape_says():
    width, layers, batch, tokens = 48, 3, 2, 5
    work = multiply_adds(Encoder(width, layers, batch, tokens).load())
    assert work.weighted == layers * batch * tokens * 12 * width * width  # query, key, value, output; twice 4 · width
    assert work.attention == layers * batch * 2 * tokens * tokens * width
