"""Watching a graph: what observers are shown, what is kept, and which rows are real."""

import torch

from tests.capture import capture_one
from torchqx.fx_passes.observe import ObservingInterpreter, result_mask, rows_mask

PADDING = torch.tensor([[0, 1, 1], [1, 1, 1]])
REAL = PADDING.bool()


def test_kept_values_are_copies() -> None:
    gm, args = capture_one(lambda x: (x * 2).add_(1) + 1, torch.ones(3))
    doubled = next(n for n in gm.graph.nodes if n.op == "call_function")
    interpreter = ObservingInterpreter(gm, {}, [doubled])
    interpreter.run(*args)
    assert interpreter.kept[doubled].tolist() == [2, 2, 2]


def test_watched_values_are_shown_once_and_the_result_stays() -> None:
    gm, args = capture_one(lambda x: torch.relu(x) + 1, torch.randn(3))
    relu = next(n for n in gm.graph.nodes if n.target is torch.relu)
    seen: list[torch.Tensor] = []
    (result,) = ObservingInterpreter(gm, {relu: seen.append}, []).run(*args)
    assert torch.equal(seen[0], torch.relu(args[0]))
    assert len(seen) == 1
    assert torch.equal(result, seen[0] + 1)


def test_what_is_kept_in_inference_mode_may_be_used_outside() -> None:
    gm, args = capture_one(lambda x: torch.relu(x) + 1, torch.randn(3))
    relu = next(n for n in gm.graph.nodes if n.target is torch.relu)
    interpreter = ObservingInterpreter(gm, {}, [relu])
    with torch.inference_mode():
        interpreter.run(*args)
    assert not interpreter.kept[relu].is_inference()


def test_rows_mask() -> None:
    assert torch.equal(rows_mask(PADDING, torch.Size((2, 3, 5))), REAL)
    assert torch.equal(rows_mask(PADDING.float(), torch.Size((6, 5))), REAL.flatten())
    assert rows_mask(None, torch.Size((2, 3, 5))) is None
    assert rows_mask(PADDING[None, None], torch.Size((2, 3, 5))) is None, "a mask of four dimensions"
    assert rows_mask(PADDING, torch.Size((2, 5))) is None, "pooled rows"


def test_other_lengths_are_not_masked() -> None:
    """A decoder of an encoder whose last tokens are padding has real tokens all the same; so has a decoding step."""
    encoder = torch.tensor([[1, 1, 1, 0, 0]])
    assert rows_mask(encoder, torch.Size((1, 2, 8))) is None
    assert rows_mask(encoder, torch.Size((1, 1, 8))) is None


def test_result_mask() -> None:
    heads = result_mask(PADDING, torch.Size((2, 4, 3, 7)))
    assert heads.shape == (2, 4, 3)
    assert torch.equal(heads[:, 1], REAL)
    last = result_mask(PADDING, torch.Size((2, 3, 4, 7)))
    assert last.shape == (2, 3, 4)
    assert torch.equal(last[..., 2], REAL)
    flat = result_mask(PADDING, torch.Size((8, 3, 7)))
    assert flat.shape == (8, 3)
    assert torch.equal(flat[3], REAL[0])
    assert torch.equal(flat[4], REAL[1])
    assert torch.equal(result_mask(PADDING, torch.Size((2, 3, 7))), REAL)
    assert result_mask(PADDING, torch.Size((2, 9, 9, 9))) is None
