"""Rotations folded in quantized models: results, what is left online, the report, and what follows from new weights."""

from unittest.mock import patch

import pytest
import torch
from torch import nn

import torchqx
from tests.architectures import ARCHITECTURES, LAYERS
from tests.torchqx.settings import relative
from torchqx import HadamardConfig, folding, runner
from torchqx.errors import TorchqxWarning
from torchqx.fx_passes.lower import HADAMARD
from torchqx.fx_passes.quantize import QuantizedGraph
from torchqx.session import SESSIONS

K, DEPTH = 64, 3


class Blocks(nn.Module):
    """Pre-norm feed-forward blocks on a projected input."""

    def __init__(self, norm: type[nn.Module] = nn.RMSNorm) -> None:
        super().__init__()
        self.first = nn.Linear(16, K)
        self.norms = nn.ModuleList([norm(K) for _ in range(DEPTH)])
        self.ups = nn.ModuleList([nn.Linear(K, 2 * K) for _ in range(DEPTH)])
        self.downs = nn.ModuleList([nn.Linear(2 * K, K) for _ in range(DEPTH)])
        self.last, self.head = norm(K), nn.Linear(K, 4)
        for name, parameter in self.named_parameters():
            if "norm" in name or "last" in name:
                nn.init.uniform_(parameter, *((-0.5, 0.5) if name.endswith("bias") else (0.5, 1.5)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(torch.relu(up(norm(x))))
        return self.head(self.last(x))


class Seen:
    """Counts rotations in the graphs that the runner folds, before and after."""

    def __init__(self) -> None:
        self.counts: list[tuple[int, int]] = []

    def __call__(self, graph: QuantizedGraph, absorbed: dict, inputs: list) -> str:
        def count() -> int:
            return sum(n.target is HADAMARD for n in graph.module.graph.nodes)

        before = count()
        reason = folding.fold_quantized(graph, absorbed, inputs)
        self.counts.append((before, count()))
        return reason


def compiled(model: nn.Module, recipe: HadamardConfig | None = None) -> nn.Module:
    torch._dynamo.reset()
    options = {"lowering": "eager"} | ({"recipe": recipe} if recipe else {})
    return torch.compile(model, backend="torchqx", options=options)


@pytest.fixture
def seen():
    watcher = Seen()
    with patch.object(runner, "fold_quantized", watcher):
        yield watcher


X = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("norm", [nn.RMSNorm, nn.LayerNorm])
@torch.no_grad()
def test_live(norm: type[nn.Module], seen: Seen) -> None:
    model = Blocks(norm).eval()
    expected = model(X)
    # Small layers: first's rows of 16 rotate online, and so do the wide rows between up and down.
    for fold in ("stream", "none"):
        run = compiled(model, HadamardConfig(calibration_steps=2, seed=4, fold=fold))
        for _ in range(3):
            result = run(X)
        assert relative(result, expected) < 0.03
    (before, after), (online, same) = seen.counts
    assert before > online == same == 2 * DEPTH + 1
    assert after == DEPTH + 1  # first, each down


@torch.no_grad()
def test_converted_model_agrees_with_eager_mode(seen: Seen) -> None:
    model = torchqx.quantize(Blocks().eval(), HadamardConfig(), [(X,)])
    expected = model(X)  # every storage tensor on its own
    result = compiled(model)(X)
    assert relative(result, expected) < 0.02
    ((before, after),) = seen.counts
    assert after < before
    placements = {r.key: r.placement for r in torchqx.explain(model).sites if r.status == "quantized"}
    assert placements["ups.1:linear:0"] == "folded"
    assert placements["downs.1:linear:0"] == "online"


@torch.no_grad()
def test_a_norm_that_changed_is_not_taken_for_the_absorbed_one(seen: Seen) -> None:
    model = torchqx.quantize(Blocks().eval(), HadamardConfig(), [(X,)])
    run = compiled(model)
    run(X)
    model.norms[1].weight.mul_(1.25)
    assert relative(run(X), model(X)) < 0.02
    first, second = seen.counts
    assert second[1] > first[1]


@torch.no_grad()
def test_a_fold_that_fails_its_proof_is_refused() -> None:
    """Said in one warning, and in the report on every model that runs the graph."""
    models = [torchqx.quantize(Blocks().eval(), HadamardConfig(), [(X,)]) for _ in range(2)]
    runs = [compiled(models[0]), torch.compile(models[1], backend="torchqx", options={"lowering": "eager"})]
    with patch.object(folding, "difference", lambda *_: 1e-3), pytest.warns(TorchqxWarning, match="stay online"):
        results = [run(X) for run in runs]
    for model, run, result in zip(models, runs, results, strict=True):
        assert relative(result, model(X)) < 0.02
        report = torchqx.explain(run)
        assert "1.0e-03 in float64" in report[":rotation:0"].reason
        assert {s.placement for s in report.sites if s.transforms} == {"online"}


class Text(nn.Module):
    """Blocks between an embedding and a head that share their weight."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.head = Blocks(), nn.Linear(K, 50, bias=False)
        self.blocks.first, self.blocks.head = nn.Embedding(50, K), nn.Identity()
        self.head.weight = self.blocks.first.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(tokens))


TOKENS = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_embedding_and_head(seen: Seen) -> None:
    """Both read rotated copies, which all graphs share, and which follow what is written into the weight."""
    model = torchqx.quantize(Text().eval(), HadamardConfig(), [(TOKENS,)])
    run = compiled(model)
    assert relative(run(TOKENS), model(TOKENS)) < 0.02
    assert relative(run(TOKENS[:1, :3]), model(TOKENS[:1, :3])) < 0.02
    assert len(seen.counts) == 2
    assert all(after == DEPTH for _, after in seen.counts)
    (session,) = SESSIONS.of(model)
    made = [tensor for kept in session.derived.values() for _, tensor in kept.values()]
    assert sum(tensor.shape == model.head.weight.shape for tensor in made) == 2
    model.head.weight.mul_(torch.linspace(0.5, 2, K))
    assert relative(run(TOKENS), model(TOKENS)) < 0.02
    report = torchqx.explain(model)
    for key in ("blocks.first:embedding:0", "head:linear:0"):
        assert (report[key].status, report[key].placement) == ("skipped", "folded")
        assert report[key].transforms == ["hadamard 64 (seed 0)"]
        assert "untied: rotated copy of 0.0122 MiB" in report[key].reason


@torch.no_grad()
def test_embedding_and_head_while_compiled(seen: Seen) -> None:
    model = Text().eval()
    run = compiled(model, HadamardConfig(calibration_steps=1))
    expected = run(TOKENS)
    assert relative(run(TOKENS), expected) < 0.03
    assert seen.counts[-1][1] == DEPTH
    report = torchqx.explain(run)
    assert report["blocks.first:embedding:0"].placement == report["head:linear:0"].placement == "folded"


@torch.no_grad()
def test_patches(seen: Seen) -> None:
    """Patches, the class token, and positions come in rotated; the patches' own pixels are rotated online."""
    vit = ARCHITECTURES["vit"]
    inputs = vit.inputs(2, 0)
    model = torchqx.quantize(vit.build(), HadamardConfig(), [inputs])
    assert relative(compiled(model)(**inputs).logits, model(**inputs).logits) < 0.02
    ((_, after),) = seen.counts
    assert after == 1 + 2 * LAYERS
    embeddings = [s for s in torchqx.explain(model).sites if s.kind == "embedding"]
    assert [s.weights for s in embeddings] == [["vit.embeddings.cls_token"], ["vit.embeddings.position_embeddings"]]
