import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import Module

import torchqx
from tests.torchqx.tiny import Tiny, output, quantized, tokens
from torchqx.errors import AlreadyQuantizedError, NotPreparedError, PlanMismatchError
from torchqx.plan import records_from_json, records_to_json
from torchqx.storage import QuantizedWeight

ROOT = Path(__file__).parents[2]

FRESH = """
import sys, torch, torchqx
from tests.torchqx.tiny import Tiny, output
folder = sys.argv[1]
expected = torch.load(folder + "/expected.pt")
state = torch.load(folder + "/state.pt", weights_only=True)
by_state = Tiny().eval()
by_state.load_state_dict(state, assign=True)
by_file = torchqx.load(Tiny().eval(), folder)
for model in (by_state, by_file):
    assert torch.equal(output(model), expected["output"])
    assert torchqx.explain(model).to_json() == expected["report"]
"""


@pytest.fixture(scope="module")
def converted() -> Module:
    return quantized()


@pytest.fixture
def folder(converted: Module, tmp_path: Path) -> Path:
    torchqx.save(converted, tmp_path)
    return tmp_path


def report(model: Module) -> dict:
    return torchqx.explain(model).to_dict()


def kinds(model: Module) -> dict[str, type]:
    return {n: type(p) for n, p in model.named_parameters(remove_duplicate=False)}


def test_the_model_has_what_this_file_is_about(converted: Module) -> None:
    held = kinds(converted)
    assert all(held[n] is QuantizedWeight for n in ("up.weight", "first.weight", "second.weight", "w", "w_b"))
    assert held["head.weight"] is not QuantizedWeight
    assert converted.up.weight.shift is not None


def test_state_dict_round_trip(converted: Module, tmp_path: Path) -> None:
    torch.save(converted.state_dict(), tmp_path / "state.pt")
    fresh = Tiny().eval()
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), assign=True)
    assert torch.equal(output(fresh), output(converted))
    assert report(fresh) == report(converted)


def test_save_and_load_give_the_same_model(converted: Module, folder: Path) -> None:
    loaded = torchqx.load(Tiny().eval(), folder)
    assert torch.equal(output(loaded), output(converted))
    assert report(loaded) == report(converted)
    assert kinds(loaded) == kinds(converted)
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.first is loaded.second
    assert not loaded.up.weight.requires_grad
    assert loaded.up.bias.requires_grad


@pytest.mark.parametrize("lowering", ["eager", "inductor"])
def test_a_loaded_model_runs_under_the_backend(converted: Module, folder: Path, lowering: str) -> None:
    loaded = torchqx.load(Tiny().eval(), folder)
    result, expected = [output(torch.compile(model, backend="torchqx", options={"lowering": lowering}))
                        for model in (loaded, converted)]
    assert torch.equal(result, expected)
    assert (result - output(converted)).norm() < 0.01 * expected.norm()


def test_load_into_a_meta_model(converted: Module, folder: Path) -> None:
    with torch.device("meta"):
        model = Tiny().eval()
    assert torch.equal(output(torchqx.load(model, folder)), output(converted))


def test_one_file_by_name_and_the_compiled_wrapper(converted: Module, tmp_path: Path) -> None:
    torchqx.save(torch.compile(converted, backend="eager"), tmp_path / "deep" / "own.safetensors")
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["own.safetensors"]
    wrapper = torch.compile(Tiny().eval(), backend="eager")
    loaded = torchqx.load(wrapper, tmp_path / "deep" / "own.safetensors")
    assert torch.equal(output(loaded), output(converted))


def test_a_fresh_process_loads_both(folder: Path) -> None:
    model = quantized()  # of which nothing was compiled: the report would tell what was chosen for it
    torch.save(model.state_dict(), folder / "state.pt")
    torch.save({"output": output(model), "report": torchqx.explain(model).to_json()}, folder / "expected.pt")
    done = subprocess.run([sys.executable, "-c", FRESH, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_part_of_a_model(converted: Module, tmp_path: Path) -> None:
    torchqx.save(torch.nn.Sequential(converted.up, converted.down), tmp_path / "two.safetensors")
    torchqx.save(converted.first, tmp_path / "one.safetensors")
    fresh = Tiny()
    torchqx.load(fresh.first, tmp_path / "one.safetensors")
    assert torch.equal(fresh.first(torch.ones(2, 32)), converted.first(torch.ones(2, 32)))
    with pytest.raises(PlanMismatchError, match=r"0\.weight carries the plan"):
        torchqx.load(torch.nn.Sequential(fresh.up, fresh.down), tmp_path / "two.safetensors")


def test_records_of_a_model_that_stayed_float(tmp_path: Path) -> None:
    recipe = torchqx.MinMaxConfig(error_budget=1e-9, error_limit=1e-9, loss="linear")
    model = torchqx.quantize(Tiny().eval(), recipe, [tokens()])
    assert QuantizedWeight not in kinds(model).values()
    torchqx.save(model, tmp_path)
    assert report(torchqx.load(Tiny().eval(), tmp_path)) == report(model)


def test_a_float_model_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NotPreparedError, match="Remedy"):
        torchqx.save(Tiny(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_quantized_or_prepared_model_is_not_loaded_into(converted: Module, folder: Path) -> None:
    prepared = torchqx.prepare(Tiny().eval(), torchqx.MinMaxConfig())
    for model in (copy.deepcopy(converted), prepared):
        with pytest.raises(AlreadyQuantizedError, match="float model"):
            torchqx.load(model, folder)


def unchanged_after(model: Module, folder: Path, match: str) -> None:
    before = dict(model.state_dict(keep_vars=True))
    with pytest.raises(PlanMismatchError, match=match):
        torchqx.load(model, folder)
    after = dict(model.state_dict(keep_vars=True))
    assert before.keys() == after.keys()
    assert all(before[n] is after[n] for n in before)


def test_other_shapes(folder: Path) -> None:
    unchanged_after(Tiny(inner=64), folder, r"up.weight is torch.float32 \[63, 32\]")


def test_other_names(folder: Path) -> None:
    model = Tiny()
    model.third = torch.nn.Linear(2, 2)
    del model.offset
    unchanged_after(model, folder, r"lacks 2 .*third.bias.* 1 others \['offset'\]")


def test_other_kinds_of_dtype(folder: Path) -> None:
    model = Tiny()
    model.offset = torch.zeros(32, dtype=torch.long)
    unchanged_after(model, folder, "offset is torch.float32")


def test_a_plan_that_names_other_weights(converted: Module, tmp_path: Path) -> None:
    other = copy.deepcopy(converted)
    records = records_from_json(other.down.weight.plan)
    records[0].weights = ["layers.7.fc2.weight"]
    other.down.weight.plan = records_to_json(records)
    torchqx.save(other, tmp_path)
    unchanged_after(Tiny(), tmp_path, r"down.weight carries the plan of site .*layers\.7\.fc2\.weight")


def test_a_plan_on_the_wrong_weight(converted: Module, tmp_path: Path) -> None:
    other = copy.deepcopy(converted)
    other.up.weight.plan = other.down.weight.plan
    torchqx.save(other, tmp_path)
    unchanged_after(Tiny(), tmp_path, "up.weight carries the plan")
