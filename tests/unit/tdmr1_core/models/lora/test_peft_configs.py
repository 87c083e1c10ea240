"""Every LoRA config that PEFT can save is read with PEFT's output, or is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from support.errors import raises
from support.lora_networks import KINDS

from tdmr1_core.models.families import FAMILIES
from tdmr1_core.models.lora.files import LoraFile, read_lora
from tdmr1_core.models.lora.metadata import REFUSED_SETTINGS, WITHOUT_EFFECT
from tdmr1_core.models.lora.shape import LoraShape
from tdmr1_core.models.meta_network import MetaNetwork

pytestmark = pytest.mark.unit

TARGETS = {
    "sd3": [
        ["attn.to_q", "attn.add_k_proj"],
        ["to_q", "to_k"],
        ["norm1.linear", "norm1_context.linear", "proj_out"],
        ["ff.net.0.proj", "context_embedder"],
        r".*transformer_blocks\.1\..*(to_v|net\.2)",
        "all-linear",
    ],
    "zimage": [
        ["attention.to_q", "attention.to_out.0"],
        ["w1", "w3"],
        ["layers.0.adaLN_modulation.0", "adaLN_modulation.1"],
        r".*layers\.0\.(attention\.to_v|feed_forward\.w2)",
        "all-linear",
    ],
}


@pytest.fixture(scope="module", params=KINDS)
def family(request):
    """A network of a family with random weights, and its name."""
    torch.manual_seed(3)
    kind, config = KINDS[request.param]
    network = kind(**config).double().eval()
    return request.param, network, MetaNetwork(FAMILIES[request.param], config)


def saved(network, config, folder, *, safe=True):
    """A PEFT model with this config, random A and B, saved to a folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(copy.deepcopy(network), config)
        for name, weight in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weight, std=0.3)
        model.save_pretrained(folder, safe_serialization=safe)
    return model


def updates(network, adapter):
    """The update of every linear layer that has this adapter."""
    found = {}
    for name, module in network.named_modules():
        if isinstance(module, LoraLayer) and adapter in module.lora_A:
            found[name.removeprefix("base_model.model.")] = module.get_delta_weight(adapter).detach()
    return found


def same_updates(network, model, lora: LoraFile):
    """Our LoRA changes every weight as PEFT's does. The weights of the file have float32 precision."""
    ours = inject_adapter_in_model(lora.shape.peft(), copy.deepcopy(network), adapter_name="ours")
    parameters = {name.replace(".ours.", "."): weight for name, weight in ours.named_parameters() if ".ours." in name}
    assert parameters.keys() == lora.weights.keys()
    for name, weight in lora.weights.items():
        parameters[name].data = weight.double()
    found, wanted = updates(ours, "ours"), updates(model, "default")
    assert found.keys() == wanted.keys()
    for name, update in wanted.items():
        torch.testing.assert_close(found[name], update.double(), rtol=1e-6, atol=1e-6, msg=name)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_plain_configs_have_the_output_of_peft(family, tmp_path_factory, data):
    name, network, meta = family
    patterns = {"sd3": ["attn.to_q", "norm1.linear", "^proj_out"], "zimage": ["to_q", "w1", "^cap_embedder.1"]}[name]
    ranks = st.dictionaries(st.sampled_from(patterns), st.integers(1, 6), max_size=2)
    config = LoraConfig(
        r=data.draw(st.integers(1, 5)),
        lora_alpha=data.draw(st.integers(1, 20)),
        target_modules=data.draw(st.sampled_from(TARGETS[name])),
        use_rslora=data.draw(st.booleans()),
        rank_pattern=data.draw(ranks),
        alpha_pattern=data.draw(ranks),
        init_lora_weights=data.draw(st.sampled_from([True, False, "gaussian", "orthogonal"])),
        lora_dropout=data.draw(st.sampled_from([0.0, 0.3])),
    )
    if config.init_lora_weights == "orthogonal":
        config.r, config.rank_pattern = 4, {}  # PEFT needs an even rank
    folder = tmp_path_factory.mktemp("peft")
    model = saved(network, config, folder, safe=data.draw(st.booleans()))
    same_updates(network, model, read_lora(folder, meta, LoraShape(4, 8.0, ("attn.to_q",))))


def test_layers_and_exclusions_have_the_output_of_peft(family, tmp_path):
    name, network, meta = family
    pattern = {"sd3": "transformer_blocks", "zimage": "layers"}[name]
    linear = {"sd3": "to_q", "zimage": "to_q"}[name]
    configs = {
        "layers": LoraConfig(target_modules=[linear], layers_to_transform=[0], layers_pattern=pattern),
        "exclusions": LoraConfig(target_modules="all-linear", exclude_modules=[linear]),
    }
    for kind, config in configs.items():
        model = saved(network, config, tmp_path / kind)
        same_updates(network, model, read_lora(tmp_path / kind, meta, LoraShape(4, 8.0, (linear,))))


REFUSED = {
    "dora": {"use_dora": True},
    "biases of all layers": {"bias": "all"},
    "biases of the LoRA": {"bias": "lora_only"},
    "bias of B": {"lora_bias": True},
    "saved modules": {"modules_to_save": ["proj_out"]},
    "pissa": {"init_lora_weights": "pissa_niter_2"},
    "olora": {"init_lora_weights": "olora"},
}


@pytest.mark.parametrize("changes", REFUSED.values(), ids=REFUSED)
def test_what_is_more_than_a_lora_is_refused(family, tmp_path, changes):
    name, network, meta = family
    if "modules_to_save" in changes and name == "zimage":
        changes = {"modules_to_save": ["cap_embedder"]}
    saved(
        network.float() if "init_lora_weights" in changes else network,
        LoraConfig(target_modules=["to_q"], **changes),
        tmp_path,
    )
    with raises("lora-unsupported") as caught:
        read_lora(tmp_path, meta, LoraShape(4, 8.0, ("to_q",)))
    assert caught.value.values["found"]
    network.double()


@pytest.mark.parametrize("initialization", ["corda", "eva", "loftq", "lora_ga", "future_init"])
def test_initializations_that_need_data_are_refused(family, tmp_path, initialization):
    _, network, meta = family
    saved(network, LoraConfig(target_modules=["to_q"]), tmp_path)
    change_config(tmp_path, init_lora_weights=initialization)
    with raises("lora-unsupported"):
        read_lora(tmp_path, meta, LoraShape(4, 8.0, ("to_q",)))


@pytest.mark.parametrize("changes", [{"peft_type": "LOHA"}, {"invented": 3}, {"use_qalora": True}])
def test_unknown_methods_and_settings_are_refused(family, tmp_path, changes):
    _, network, meta = family
    saved(network, LoraConfig(target_modules=["to_q"]), tmp_path)
    change_config(tmp_path, **changes)
    with raises("lora-unsupported"):
        read_lora(tmp_path, meta, LoraShape(4, 8.0, ("to_q",)))


def change_config(folder, **changes):
    """Change values of the adapter config."""
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_every_setting_of_the_installed_peft_is_known():
    names = {field.name for field in dataclasses.fields(LoraConfig)}
    assert names <= {*REFUSED_SETTINGS, *WITHOUT_EFFECT}
    assert not set(REFUSED_SETTINGS) & set(WITHOUT_EFFECT)
