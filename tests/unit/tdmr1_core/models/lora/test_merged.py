"""Layers that compute with W + s B A, compared with PEFT's own layers."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tdmr1_core.models.lora.merged import MergedLinear, MergedProduct, merge

pytestmark = pytest.mark.unit

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


def network(dtype, *, merged, adapters=("one", "two")):
    """Two linear layers with two LoRAs each; no weight is zero."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 8, bias=False)).to(dtype).requires_grad_(False)
    for number, name in enumerate(adapters):
        torch.manual_seed(number + 1)
        config = LoraConfig(r=4, lora_alpha=8, target_modules=["0", "2"], init_lora_weights=False)
        if merged:
            config._register_custom_module({nn.Linear: MergedLinear})
        inject_adapter_in_model(config, net, adapter_name=name)
    for name, weight in net.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.to(dtype) * 0.3
            weight.requires_grad_(True)
    return net


def activate(net, names):
    for layer in (net[0], net[2]):
        layer.set_adapter(names)


def relative(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("names", [["one"], ["two"], []])
def test_outputs_and_gradients_equal_those_of_peft(dtype, names):
    results = []
    for merged in (False, True):
        net = network(dtype, merged=merged)
        assert isinstance(net[0], MergedLinear) is merged
        activate(net, names)
        x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(7), dtype=dtype, requires_grad=True)
        out = net(x)
        out.square().sum().backward()
        with torch.no_grad():
            sampled = net(x)
        gradients = {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}
        assert {name.split(".")[-2] for name in gradients} == set(names)
        results.append({"out": out.detach(), "sampled": sampled, "x": x.grad, **gradients})
    assert results[0].keys() == results[1].keys()
    for name, wanted in results[0].items():
        assert relative(results[1][name], wanted) < TOLERANCE[dtype], name


def test_the_backward_pass_is_the_derivative():
    torch.manual_seed(0)
    x, weight, bias, a, b = (
        torch.randn(*shape, dtype=torch.float64) for shape in [(6, 5), (4, 5), (4,), (2, 5), (4, 2)]
    )
    for tensor in (x, a, b):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, a, b: MergedProduct.apply(x, weight, bias, a, b, 0.7), (x, a, b))


def test_a_hand_computed_sum():
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    a, b = torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0], [0.5]])
    assert merge(weight, a, b, 2.0).tolist() == [[5.0, -2.0], [4.0, 3.0]]


def test_no_full_weight_is_stored_for_the_backward_pass():
    net = network(torch.float32, merged=True)
    activate(net, ["one"])
    stored = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: stored.append(tensor) or tensor, lambda tensor: tensor
    ):
        net(torch.randn(2, 16))
    frozen = {weight.data_ptr() for weight in (net[0].base_layer.weight, net[2].base_layer.weight)}
    shapes = {(24, 16), (8, 24)}
    assert all(tensor.data_ptr() in frozen for tensor in stored if tuple(tensor.shape) in shapes)


def test_activation_changes_no_requires_grad():
    net = network(torch.float32, merged=True)
    activate(net, ["two"])
    assert all(weight.requires_grad for name, weight in net.named_parameters() if "lora_" in name)
    assert not any(weight.requires_grad for name, weight in net.named_parameters() if "lora_" not in name)


def test_under_autocast_the_product_is_in_bf16_and_gradients_are_in_float32():
    net = network(torch.float32, merged=True)
    activate(net, ["one"])
    x = torch.randn(4, 16)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        trained = net(x)
        with torch.no_grad():
            sampled = net(x)
    assert trained.dtype == sampled.dtype == torch.bfloat16
    assert torch.equal(trained, sampled)
    assert relative(trained.float(), exact) < 0.02
    trained.float().square().sum().backward()
    weight = net[0].lora_A["one"].weight
    assert weight.grad.dtype == torch.float32
    rounded = weight.grad.clone()
    weight.grad = None
    exact.square().sum().backward()
    assert relative(rounded, weight.grad) < 0.03
