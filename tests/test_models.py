"""Networks by name, with weights that depend on the seed alone, and weights from files."""

import hashlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenetv2, resnet, shufflenetv2, vgg

from ttm_lab.models import create_model, list_models
from ttm_lab.models.cifar import CIFAR_MODELS, BasicBlock, shuffle
from ttm_lab.runs import weights_fingerprint

TABLE = Path(__file__).with_name("data") / "cifar_state_dicts.json"
PUBLISHED = json.loads(TABLE.read_text(encoding="utf-8"))["networks"]


def lived_in(name_or_network):
    """A network in float64 and eval mode, whose batch norms do something to what they get."""
    network = create_model(name_or_network, 10, seed=0)
    torch.manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for values in (layer.weight, layer.running_var):
                nn.init.uniform_(values, 0.5, 1.5)
            for values in (layer.bias, layer.running_mean):
                nn.init.normal_(values, std=0.2)
    return network.double().eval()


def pictures(count=2):
    return torch.randn(count, 3, 32, 32, dtype=torch.float64)


def with_weights_of(source, network):
    """``network`` in float64 and eval mode, with the weights of ``source`` in their order."""
    state = network.state_dict()
    assert [v.shape for v in state.values()] == [v.shape for v in source.state_dict().values()]
    network.load_state_dict(dict(zip(state, source.state_dict().values(), strict=True)))
    return network.double().eval()


def test_seeds_of_more_bits_than_torch_takes_are_refused():
    for seed in (2**64 - 1, -(2**63)):
        create_model("cnn_small", 10, seed=seed)
    for seed in (2**70, -(2**70)):
        with pytest.raises(ValueError, match=f"seed={seed} must be less than {2**64} in size"):
            create_model("cnn_small", 10, seed=seed)


@pytest.mark.parametrize("name", ["cnn_small", "cnn_large"])
def test_logits_have_a_column_a_class(name):
    assert name in list_models()
    assert create_model(name, 7)(torch.zeros(3, 1, 8, 8)).shape == (3, 7)


def test_the_digits_networks_keep_the_weights_that_a_seed_gave_before():
    # the searched settings of the digits study were found with these
    prints = []
    for name in ("cnn_small", "cnn_large"):
        digest = hashlib.sha256(b"TinyConvNet")
        for key, tensor in sorted(create_model(name, 10, seed=0).state_dict().items()):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.numpy().tobytes())
        prints.append(digest.hexdigest())
    assert prints == [
        "3b99a0a06ac242cc6de4401e17afa7c62e8f5a09e4848c992bc77015590d54d8",
        "7ba34fb64d2e814fd18f3973c3caa3fa7f107d209daa067954f91184423df27e",
    ]


@pytest.mark.parametrize("name", ["cnn_small", "resnet8", "MobileNetV2", "torchvision/resnet18"])
def test_the_seed_alone_decides_the_weights_and_global_randomness_is_left_alone(name):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = create_model(name, 10, seed=1).state_dict()
    assert torch.rand(1) == expected
    torch.manual_seed(6)
    again, other = (create_model(name, 10, seed=s).state_dict() for s in (1, 2))
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("name", ["resnet7", "torchvision/resnet17", "elsewhere/resnet18", ""])
def test_unknown_model_is_named_with_the_remedy(name):
    with pytest.raises(ValueError, match=rf"'{name}'.*available: MobileNetV2,.* cnn_small,"):
        create_model(name)


@pytest.mark.parametrize("name", ["cnn_small", "cnn_large"])
def test_pooling_before_relu_changes_no_bit(name):
    network, images = create_model(name, 10, seed=0), torch.rand(8, 1, 8, 8)
    images[:4] = images[:4].round()  # many equal neighbours
    state, x = network.state_dict(keep_vars=True), images
    for k in (0, 3):  # the usual order: convolution, ReLU, pooling
        x = F.conv2d(x, state[f"features.{k}.weight"], state[f"features.{k}.bias"], padding=1)
        x = F.max_pool2d(F.relu(x), 2)
    usual = F.linear(x.flatten(1), state["classifier.weight"], state["classifier.bias"])
    ours, labels = network(images), torch.arange(8)
    assert torch.equal(ours, usual)
    weights = list(network.parameters())
    pairs = [torch.autograd.grad(F.cross_entropy(x, labels), weights) for x in (ours, usual)]
    for a, b in zip(*pairs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", ["cnn_small", "vgg8", "torchvision/resnet18"])
def test_fewer_than_two_classes_are_refused(name):
    with pytest.raises(ValueError, match="num_classes=1 must be at least 2"):
        create_model(name, 1)


def test_the_zoo_is_the_published_one():
    assert list(CIFAR_MODELS) == list(PUBLISHED)
    assert set(PUBLISHED) <= set(list_models())


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_have_the_published_names_order_and_shapes(name):
    with torch.device("meta"):  # shapes without numbers
        network = create_model(name)
    found = {key: list(value.shape) for key, value in network.state_dict().items()}
    assert list(found.items()) == list(PUBLISHED[name]["state_dict"].items())
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name]["parameters"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_features_lead_to_the_logits_and_gradients_reach_every_parameter(name):
    network = create_model(name, 7, seed=0)
    images = torch.randn(2, 3, 32, 32)
    network.train()
    assert network(images).shape == (2, 7)
    network.eval()  # in train mode batch norm cancels some biases before it
    features = network.forward_features(images)
    logits = network.head(features)
    assert features.ndim == 2
    assert (features >= 0).all()  # means of what a ReLU gave
    assert torch.equal(logits, network(images))
    logits.square().sum().backward()
    assert [n for n, p in network.named_parameters() if not p.grad.any()] == []
    assert all(p.grad.isfinite().all() for p in network.parameters())


def test_the_digits_networks_give_features_too():
    network, images = create_model("cnn_small", 10, seed=0), torch.rand(3, 1, 8, 8)
    features = network.forward_features(images)
    assert features.shape == (3, 32)
    assert torch.equal(network.head(features), network(images))


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV2"])
def test_only_train_mode_depends_on_the_batch(name):
    network = create_model(name, 10, seed=0).double()
    images = pictures(4)
    assert not torch.allclose(network.train()(images)[:2], network(images[:2]))
    network.eval()
    torch.testing.assert_close(network(images)[:2], network(images[:2]))


# Worked out by hand from the strides: the side of the picture after each layer or block
SIDES = {
    "resnet20": {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "fc": 64},
    "resnet8x4": {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "fc": 256},
    "ResNet50": {"conv1": 32, "layer1": 32, "layer2": 16, "layer3": 8, "layer4": 4, "linear": 2048},
    "wrn_16_2": {"conv1": 32, "block1": 32, "block2": 16, "block3": 8, "fc": 128},
    "vgg8": {"block0": 32, "block1": 16, "block2": 8, "block3": 4, "block4": 4, "classifier": 512},
    "MobileNetV2": {
        **{"conv1": 16, "blocks.0": 16, "blocks.1": 16, "blocks.2": 8, "blocks.3": 4},
        **{"blocks.4": 4, "blocks.5": 2, "blocks.6": 2, "conv2": 2, "classifier": 1280},
    },
    "ShuffleV1": {"conv1": 32, "layer1": 16, "layer2": 8, "layer3": 4, "linear": 960},
    "ShuffleV2": {"conv1": 32, "layer1": 16, "layer2": 8, "layer3": 4, "conv2": 4, "linear": 1024},
}


@pytest.mark.parametrize("name", SIDES)
def test_pictures_shrink_where_they_should(name):
    network, found = create_model(name, 10, seed=0).eval(), {}
    for layer in SIDES[name]:
        network.get_submodule(layer).register_forward_hook(
            lambda _, inputs, output, layer=layer: found.update(
                {layer: output.shape[2] if output.ndim == 4 else inputs[0].shape[1]}
            )
        )
    with torch.no_grad():
        network(torch.randn(1, 3, 32, 32))
    assert found == SIDES[name]  # of the classifier: the number of features


@pytest.mark.parametrize(
    ("name", "first_block", "activated"),
    [
        ("resnet8", "layer1.0", True),
        ("ResNet50", "layer1.0", True),
        ("wrn_16_1", "block1.layer.0", False),  # its blocks activate what they get
        ("MobileNetV2", "blocks.0.0", True),
        ("ShuffleV1", "layer1.0", True),
        ("ShuffleV2", "layer1.0", True),
    ],
)
def test_what_the_first_convolution_hands_on(name, first_block, activated):
    network, found = lived_in(name), []
    network.get_submodule(first_block).register_forward_pre_hook(
        lambda _, inputs: found.append(inputs[0])
    )
    images = pictures()
    network(images)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    expected = layers[0](images)
    if activated:
        expected = layers[1](expected).clamp(min=0)
    torch.testing.assert_close(found, [expected])


@pytest.mark.parametrize("name", ["resnet14", "resnet8x4"])
def test_resnet_is_made_of_torchvisions_basic_blocks(name):
    network = lived_in(name)

    def reference(x):
        x = F.relu(network.bn1(network.conv1(x)))
        for block in (b for k in (1, 2, 3) for b in network.get_submodule(f"layer{k}")):
            assert isinstance(block, BasicBlock)
            outputs, inputs, *_ = block.conv1.weight.shape
            downsample = None
            if block.downsample.state_dict():
                stride = block.conv1.stride
                convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
                downsample = nn.Sequential(convolution, nn.BatchNorm2d(outputs))
            theirs = resnet.BasicBlock(inputs, outputs, block.conv1.stride, downsample)
            x = with_weights_of(block, theirs)(x)
        return network.fc(x.mean((2, 3)))

    images = pictures()
    torch.testing.assert_close(network(images), reference(images))


def test_resnet50_is_torchvisions_with_another_stem():
    network = lived_in("ResNet50")
    theirs = torchvision.models.resnet50(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    images = pictures(1)
    with torch.no_grad():
        torch.testing.assert_close(network(images), with_weights_of(network, theirs)(images))


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_is_torchvisions_without_the_last_two_poolings(depth):
    network = lived_in(f"vgg{depth}")
    plan = vgg.cfgs[{11: "A", 13: "B", 16: "D", 19: "E"}[depth]]
    layers = list(vgg.make_layers(plan, batch_norm=True))
    last = [layer for layer in layers if isinstance(layer, nn.MaxPool2d)][3:]
    theirs = nn.Sequential(
        *(layer for layer in layers if layer not in last),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    images = pictures(1)
    with torch.no_grad():
        torch.testing.assert_close(network(images), with_weights_of(network, theirs)(images))


@pytest.mark.parametrize(("stage", "block", "stride"), [(2, 0, 2), (2, 1, 1), (4, 0, 1)])
def test_mobilenet_blocks_are_torchvisions(stage, block, stride):
    ours = lived_in("MobileNetV2").blocks[stage][block]
    outputs, inputs = ours.conv[6].out_channels, ours.conv[0].in_channels
    theirs = mobilenetv2.InvertedResidual(inputs, outputs, stride, expand_ratio=6)
    for layer in theirs.modules():  # of the benchmark's two, the one without a ceiling
        for name, child in layer.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(layer, name, nn.ReLU())
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), with_weights_of(ours, theirs)(x))


@pytest.mark.parametrize(("block", "inputs", "stride"), [(0, 116, 2), (1, 232, 1)])
def test_shufflenet_v2_blocks_are_torchvisions(block, inputs, stride):
    ours = lived_in("ShuffleV2").layer2[block]
    theirs = shufflenetv2.InvertedResidual(inputs, 232, stride)
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), with_weights_of(ours, theirs)(x))


def test_shuffle_sends_each_channel_where_the_formula_says():
    channels, groups = 12, 3
    x = torch.arange(channels).reshape(1, channels, 1, 1).expand(2, -1, 4, 5)
    shuffled = shuffle(x, groups)
    for channel in range(channels):
        group, place = divmod(channel, channels // groups)
        assert (shuffled[:, place * groups + group] == channel).all()
    torch.testing.assert_close(shuffled, nn.ChannelShuffle(groups)(x.contiguous()))


def normed(state, number, x):
    names = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(x, *(state[f"bn{number}.{name}"] for name in names))


def test_wide_block_activates_before_it_convolves():
    network = lived_in("wrn_16_2")
    for block, stride in ((network.block2.layer[0], 2), (network.block2.layer[1], 1)):
        state = block.state_dict()
        x = torch.randn(2, block.conv1.in_channels, 8, 8, dtype=torch.float64)
        active = normed(state, 1, x).clamp(min=0)
        out = F.conv2d(active, state["conv1.weight"], stride=stride, padding=1)
        out = F.conv2d(normed(state, 2, out).clamp(min=0), state["conv2.weight"], padding=1)
        short = x
        if "convShortcut.weight" in state:  # which sees what the first convolution sees
            short = F.conv2d(active, state["convShortcut.weight"], stride=stride)
        assert ("convShortcut.weight" in state) == (stride == 2)
        torch.testing.assert_close(block(x), out + short)


@pytest.mark.parametrize(("layer", "block"), [("layer1", 0), ("layer2", 0), ("layer2", 3)])
def test_shufflenet_v1_block(layer, block):
    ours = lived_in("ShuffleV1").get_submodule(layer)[block]
    state, stride = ours.state_dict(), 1 if block else 2
    inputs = ours.conv1.in_channels
    x = torch.randn(2, inputs, 8, 8, dtype=torch.float64)
    groups = inputs // state["conv1.weight"].shape[1]
    assert groups == (1 if inputs == 24 else 3)
    out = normed(state, 1, F.conv2d(x, state["conv1.weight"], groups=groups)).clamp(min=0)
    width = out.shape[1]
    places = [
        group * (width // groups) + k for k in range(width // groups) for group in range(groups)
    ]
    out = F.conv2d(out[:, places], state["conv2.weight"], stride=stride, padding=1, groups=width)
    out = normed(state, 2, out).clamp(min=0)
    out = normed(state, 3, F.conv2d(out, state["conv3.weight"], groups=3))
    if block:
        out = out + x
    else:
        # a mean over nine pixels, those beyond the edge counted as 0
        nine = F.unfold(x, 3, padding=1, stride=2).reshape(2, inputs, 9, 4, 4)
        out = torch.cat([out, nine.mean(2)], 1)
    torch.testing.assert_close(ours(x), out.clamp(min=0))


@pytest.mark.parametrize(
    ("name", "weight", "variance"),
    [
        ("resnet20", "layer3.1.conv2.weight", 2 / (9 * 64)),
        ("ResNet50", "layer3.0.shortcut.0.weight", 2 / 1024),
        ("wrn_16_2", "block3.layer.1.conv1.weight", 2 / (9 * 128)),
        ("vgg8", "block2.0.weight", 2 / (9 * 256)),
        ("vgg8", "classifier.weight", 1e-4),
        ("MobileNetV2", "blocks.6.0.conv.3.weight", 2 / (9 * 480)),  # depthwise
        ("MobileNetV2", "classifier.0.weight", 1e-4),
        ("resnet56", "fc.weight", 1 / (3 * 64)),  # torch's default: uniform, variance 1/(3 inputs)
        ("ShuffleV1", "layer3.1.conv3.weight", 1 / (3 * 80)),
        ("ShuffleV2", "conv2.weight", 1 / (3 * 464)),
    ],
)
def test_initial_weights_have_the_benchmarks_spread(name, weight, variance):
    values = create_model(name, seed=0).get_parameter(weight)
    assert abs(values.mean()) < 5 * math.sqrt(variance / values.numel())
    assert values.var().item() == pytest.approx(variance, rel=8 / math.sqrt(values.numel()))


@pytest.mark.parametrize("name", ["wrn_16_1", "vgg8", "MobileNetV2"])
def test_biases_that_the_benchmark_starts_at_zero(name):
    network = create_model(name, seed=0)
    assert not any(p.any() for n, p in network.named_parameters() if n.endswith("bias"))


@pytest.mark.parametrize(
    ("paper", "published"),
    [
        ("wrn-40-2", "wrn_40_2"),
        ("ShuffleNetV1", "ShuffleV1"),
        ("ShuffleNetV2", "ShuffleV2"),
        ("ResNet-18", "torchvision/resnet18"),
    ],
)
def test_the_papers_spellings(paper, published):
    first, second = (weights_fingerprint(create_model(n, 10, seed=3)) for n in (paper, published))
    assert first == second


@pytest.mark.parametrize(("depth", "parameters"), [(18, 11_689_512), (50, 25_557_032)])
def test_imagenet_networks_have_a_thousand_classes(depth, parameters):
    with torch.device("meta"):  # parameters as torchvision states them
        network = create_model(f"torchvision/resnet{depth}")
    assert sum(p.numel() for p in network.parameters()) == parameters
    assert network.fc.out_features == 1000


def test_timm_networks():
    pytest.importorskip("timm", reason="the extra imagenet is not installed")
    for name in (n for n in list_models() if n.startswith("timm/")):
        with torch.device("meta"):
            assert create_model(name)(torch.empty(1, 3, 224, 224)).shape == (1, 1000)
    with pytest.raises(ValueError, match="unknown model 'timm/nothing'"):
        create_model("timm/nothing")


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'ttm-lab\[imagenet\]'"):
        create_model("timm/deit_tiny_patch16_224")
