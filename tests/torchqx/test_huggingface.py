"""What transformers saves of a quantized model, and loads again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchao.quantization import FqnToConfig, Int8WeightOnlyConfig, quantize_
from torchao.utils import TorchAOBaseTensor
from transformers import AutoModelForCausalLM, PreTrainedModel, TorchAoConfig

import torchqx
from tests.architectures import ARCHITECTURES
from torchqx.huggingface import attach
from torchqx.storage import QuantizedWeight

ROOT = Path(__file__).parents[2]
TOKEN = torchqx.MinMaxConfig(activation="token")
RECIPE = torchqx.OutlierSuppressionPlusConfig(shift=True, grid_steps=3, loss="linear", activation="static")

FRESH = """
import sys, torch, torchqx
from transformers import AutoModelForCausalLM
expected = torch.load(sys.argv[1] + "/expected.pt")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    assert torch.equal(model(**expected["inputs"]).logits, expected["output"])
assert torchqx.explain(model).to_json() == expected["report"]
"""


@torch.no_grad()
def output(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    result = model(**inputs)
    return result.logits if "logits" in result else result[0]


def quantized_weights(model: nn.Module) -> list[str]:
    return [n for n, p in model.named_parameters() if isinstance(p, QuantizedWeight)]


def same(loaded: nn.Module, model: nn.Module, inputs: dict[str, Tensor]) -> None:
    assert quantized_weights(loaded) == quantized_weights(model) != []
    assert torch.equal(output(loaded, inputs), output(model, inputs))
    assert torchqx.explain(loaded).to_dict() == torchqx.explain(model).to_dict()
    assert not any(p.requires_grad for p in loaded.parameters() if isinstance(p, QuantizedWeight))


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return torchqx.quantize(ARCHITECTURES["llama"].build(), RECIPE, [inputs()])


def inputs() -> dict[str, Tensor]:
    return ARCHITECTURES["llama"].inputs(2, 12)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "vit"])
def test_save_and_load(name: str, tmp_path: Path) -> None:
    """[in, out] weights with biases and a tied head; stacked experts, merged on load; a patch embedding."""
    architecture = ARCHITECTURES[name]
    batch = architecture.inputs(2, 12)
    architecture.build().save_pretrained(tmp_path / "float")
    model = type(architecture.build()).from_pretrained(tmp_path / "float")
    torchqx.quantize(model, RECIPE, [batch])
    model.save_pretrained(tmp_path / "int8")
    same(type(model).from_pretrained(tmp_path / "int8"), model, batch)


def test_a_fresh_process_loads_shards(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    torch.save({"inputs": inputs(), "output": output(llama, inputs()), "report": torchqx.explain(llama).to_json()},
               tmp_path / "expected.pt")
    done = subprocess.run([sys.executable, "-c", FRESH, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_recipe_is_in_the_config(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert saved["quant_method"] == "torchao"
    assert saved["quant_type"]["default"]["_type"] == "OutlierSuppressionPlusConfig"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.config.quantization_config.quant_type == RECIPE


def test_saved_again_after_loading(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path / "1")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "1")
    # transformers cannot undo torchao's deserialisation, so the original format is not asked for.
    loaded.save_pretrained(tmp_path / "2", save_original_format=False)
    same(AutoModelForCausalLM.from_pretrained(tmp_path / "2"), llama, inputs())


def test_generate_under_the_backend(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    prompt, asked = inputs()["input_ids"][1:, :6], {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    eager = output(loaded, {"input_ids": prompt})[:, -1]
    loaded.compile(backend="torchqx", options={"lowering": "eager"})
    done = loaded.generate(prompt, **asked, output_logits=True, return_dict_in_generate=True)
    assert done.sequences.shape == (1, 9)
    assert (done.logits[0] - eager).norm() < 0.01 * eager.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quantized_on_load(dtype: torch.dtype, tmp_path: Path) -> None:
    ARCHITECTURES["llama"].build().to(dtype).save_pretrained(tmp_path / "float")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TorchAoConfig(TOKEN))
    assert plain.dtype == model.dtype == dtype
    assert len(quantized_weights(model)) == 14
    reference = output(plain, inputs())
    assert (output(model, inputs()) - reference).norm() < 0.05 * reference.norm()
    model.save_pretrained(tmp_path / "int8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    same(loaded, model, inputs())
    prompt, asked = inputs()["input_ids"][1:, :6], {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    assert torch.equal(loaded.generate(prompt, **asked), model.generate(prompt, **asked))


def test_a_recipe_that_needs_data_is_refused_on_load(tmp_path: Path) -> None:
    ARCHITECTURES["llama"].build().save_pretrained(tmp_path)
    # transformers collects what conversions raise in a report that it logs, and raises its own error.
    with pytest.raises(RuntimeError, match="conversion"):
        AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=TorchAoConfig(RECIPE))


def test_recipes_per_module_beside_torchaos_own(tmp_path: Path) -> None:
    ARCHITECTURES["llama"].build().save_pretrained(tmp_path / "float")
    group = torchqx.MinMaxConfig(activation="group", activation_group_size=32, weight_bits=4, weight_symmetric=False,
                                 weight_granularity="group", weight_group_size=32)
    config = FqnToConfig({r"re:.*self_attn\..*": TOKEN, r"re:.*mlp\.(up|gate)_proj": group,
                          r"re:.*mlp\.down_proj": Int8WeightOnlyConfig()})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float", quantization_config=TorchAoConfig(config))
    kinds = {n: type(p).__name__ for n, p in model.named_parameters() if isinstance(p, TorchAOBaseTensor)}
    assert sorted(kinds.values()) == ["Int8Tensor"] * 2 + ["QuantizedWeight"] * 12
    model.save_pretrained(tmp_path / "int8")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    same(loaded, model, inputs())
    assert kinds == {n: type(p).__name__ for n, p in loaded.named_parameters() if isinstance(p, TorchAOBaseTensor)}
    torchqx.save(loaded, tmp_path / "own")
    same(torchqx.load(ARCHITECTURES["llama"].build(), tmp_path / "own"), model, inputs())


def test_attach_after_linears_on_their_own(tmp_path: Path) -> None:
    model = ARCHITECTURES["llama"].build()
    quantize_(model.model, TOKEN)
    attach(model, TOKEN).save_pretrained(tmp_path)
    same(AutoModelForCausalLM.from_pretrained(tmp_path), model, inputs())


def test_attach_leaves_others_alone() -> None:
    float_model = ARCHITECTURES["llama"].build()
    assert attach(float_model, TOKEN) is float_model
    assert not hasattr(float_model, "hf_quantizer")
    plain = nn.Sequential(nn.Linear(4, 4))
    quantize_(plain, TOKEN)
    assert not hasattr(attach(plain, TOKEN), "hf_quantizer")


def test_a_damaged_directory_is_not_loaded(llama: PreTrainedModel, tmp_path: Path) -> None:
    llama.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    tensors = load_file(file)
    tensors["model.layers.0.self_attn.q_proj._weight_scale"][0] = float("nan")
    save_file(tensors, file, metadata)
    with pytest.raises(RuntimeError, match="conversion"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
