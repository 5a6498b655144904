"""The sample of rows: uniform, repeatable, and mergeable without randomness."""

import pytest
import torch

from torchqx.errors import ConfigError
from torchqx.observers import RowReservoir


def numbered(start: int, stop: int) -> torch.Tensor:
    return torch.arange(start, stop, dtype=torch.float32).unsqueeze(1).expand(-1, 3)


def test_all_rows_stay_while_there_is_room():
    reservoir = RowReservoir(capacity=100)
    reservoir(numbered(0, 40))
    reservoir(numbered(40, 63))
    assert sorted(reservoir.rows[:, 0].tolist()) == list(range(63))


def test_each_row_is_kept_equally_often():
    kept = torch.zeros(200)
    for seed in range(300):
        reservoir = RowReservoir(capacity=20, seed=seed)
        for start in range(0, 200, 50):
            reservoir(numbered(start, start + 50))
        assert reservoir.rows.shape == (20, 3)
        assert int(reservoir.count) == 200
        kept[reservoir.rows[:, 0].long()] += 1
    # 300 draws at 1/10: mean 30, standard deviation 5.2; batches must not differ, nor any row stand out
    assert kept.view(4, 50).mean(1).sub(30).abs().max() < 3
    assert kept.sub(30).abs().max() < 5 * 5.2


def test_the_same_data_give_the_same_sample():
    samples = []
    for _ in range(2):
        reservoir = RowReservoir(capacity=10)
        reservoir(numbered(0, 1000))
        samples.append(reservoir.rows)
    assert torch.equal(*samples)
    assert len(samples[0][:, 0].unique()) == 10


def test_merging_keeps_the_smallest_keys_of_both():
    a, b = RowReservoir(capacity=10, seed=1), RowReservoir(capacity=10, seed=2)
    a(numbered(0, 100))
    b(numbered(1000, 1300))
    pairs = sorted(zip([*a.keys.tolist(), *b.keys.tolist()], [*a.rows[:, 0].tolist(), *b.rows[:, 0].tolist()],
                       strict=True))
    a.merge(b)
    assert a.rows[:, 0].tolist() == [row for _, row in pairs[:10]]
    assert int(a.count) == 400


def test_capacity_must_be_positive():
    with pytest.raises(ConfigError, match="capacity"):
        RowReservoir(capacity=0)
