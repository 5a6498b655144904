"""What a Mamba's pass has to compute, and the seconds that follow from it."""

import pytest
from torch import nn

from benchmarks.limits import INT8
from benchmarks.mamba_work import SCAN_OPERATIONS, MambaWork
from benchmarks.state_space_models import limits

RATES, COPY = {"float32": 10.0, INT8: 100.0}, 5.0


def test_multiply_adds_are_those_of_the_weights():
    work = MambaWork(layers=2, width=32, vocabulary=63, tokens=9)
    layers = work.load().module.model.backbone.layers
    inside = sum(m.weight.numel() for m in layers.modules() if isinstance(m, nn.Linear))
    states = sum(layer.mixer.A_log.numel() for layer in layers)
    assert work.multiply_adds() == (9 * inside + 32 * 63, 9 * states * SCAN_OPERATIONS)


def test_limits():
    work, step = (MambaWork(layers=1, width=32, vocabulary=63, tokens=n) for n in (9, 1))
    linear, scan = work.multiply_adds()
    found = limits(work, RATES, COPY)
    assert found["limit, float32"] == pytest.approx((linear + scan) / 10e9)
    assert found["limit, int8"] == pytest.approx(linear / 100e9 + scan / 10e9)
    weights, head = step.multiply_adds()[0], 32 * 63
    assert limits(step, RATES, COPY)["limit, int8"] == pytest.approx((weights + head) / 5e9)  # the head has two bytes


def test_a_step_moves_the_states_on():
    job = MambaWork(layers=1, width=32, vocabulary=63, tokens=1).load()
    job.module.read(job.past)
    state = job.module.cache.layers[0].recurrent_states[0]
    before = state.clone()
    assert job.module(**job.inputs).shape == (1, 1, 63)
    assert (state != before).any()
