"""The network definitions: shapes, published state-dict names, normalization and the option A shortcut."""

import pytest
import torch

from intcert.train.loop import accuracy
from intcert.train.models import MODELS, CifarBlock, Normalize, load_float_weights

# As published: He et al. 2015 and akamaster/pytorch_resnet_cifar10 for CIFAR, torchvision for ImageNet.
PARAMETERS = {"resnet20": 269_722, "resnet110": 1_727_962, "resnet50": 25_557_032, "mobilenetv2": 3_504_872}


@pytest.fixture(scope="module")
def published_resnet20(shared_file):
    return torch.load(shared_file("resnet20/resnet20-12fca82f.th"), map_location="cpu", weights_only=True)["state_dict"]


@pytest.mark.parametrize("name", MODELS)
def test_every_model_maps_a_batch_to_logits(name):
    model = MODELS[name](num_classes=7).eval()
    with torch.no_grad():
        logits = model(torch.rand(2, *MODELS[name].input_shape))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize(("name", "expected"), PARAMETERS.items())
def test_parameter_counts_are_the_published_ones(name, expected):
    assert sum(parameter.numel() for parameter in MODELS[name]().parameters()) == expected


@pytest.mark.parametrize("name", MODELS)
def test_normalization_is_the_first_module_and_settable(name):
    channels = MODELS[name].input_shape[0]
    model = MODELS[name](mean=(0.25,) * channels, std=(0.5,) * channels)
    first = next(iter(model.children()))
    assert isinstance(first, Normalize)
    assert first.mean.flatten().tolist() == [0.25] * channels
    assert first.std.flatten().tolist() == [0.5] * channels


def test_normalize_is_per_channel():
    normalize = Normalize(mean=(0.0, 0.5), std=(0.25, 2.0))
    x = torch.tensor([1.0, 0.25]).reshape(1, 2, 1, 1).expand(3, 2, 4, 5)
    y = normalize(x)
    assert y.shape == x.shape
    assert torch.equal(y[:, 0], torch.full((3, 4, 5), 4.0))
    assert torch.equal(y[:, 1], torch.full((3, 4, 5), -0.125))


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels_on_both_sides():
    x = torch.randn(2, 16, 8, 8)
    shortcut = CifarBlock(16, 32, stride=2).shortcut(x)
    assert shortcut.shape == (2, 32, 4, 4)
    for row in range(4):
        for column in range(4):
            assert torch.equal(shortcut[:, 8:24, row, column], x[:, :, 2 * row, 2 * column])
    assert not shortcut[:, :8].any()
    assert not shortcut[:, 24:].any()


def test_identity_shortcut_where_the_shape_stays():
    x = torch.randn(2, 16, 8, 8)
    assert CifarBlock(16, 16, stride=1).shortcut(x) is x


@pytest.mark.parametrize(
    ("name", "entries", "some"),
    [
        ("resnet50", 320, ["conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.conv3.weight", "fc.bias"]),
        (
            "mobilenetv2",
            314,
            ["features.0.0.weight", "features.1.conv.2.bias", "features.18.1.bias", "classifier.1.bias"],
        ),
    ],
)
def test_imagenet_models_have_torchvision_names(name, entries, some):
    names = [entry for entry in MODELS[name]().state_dict() if not entry.startswith("normalize.")]
    assert len(names) == entries
    assert set(some) <= set(names)


def test_load_float_weights_strips_the_data_parallel_prefix_and_keeps_the_normalization():
    source, target = MODELS["resnet20"](), MODELS["resnet20"](mean=(0.5, 0.5, 0.5), std=(1.0, 1.0, 1.0))
    published = {f"module.{k}": v for k, v in source.state_dict().items() if not k.startswith("normalize.")}
    load_float_weights(target, published)
    loaded = target.state_dict()
    assert all(torch.equal(loaded[name.removeprefix("module.")], value) for name, value in published.items())
    assert target.normalize.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("change", ["missing", "unexpected", "shape"])
def test_load_float_weights_names_what_does_not_fit(change):
    state = MODELS["lenet"]().state_dict()
    if change == "missing":
        del state["classifier.0.weight"]
    elif change == "unexpected":
        state["classifier.9.weight"] = torch.zeros(1)
    else:
        state["classifier.0.weight"] = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match=r"classifier\.[09]\.weight"):
        load_float_weights(MODELS["lenet"](), state)


def test_published_resnet20_loads_completely(published_resnet20):
    model = MODELS["resnet20"]()
    load_float_weights(model, published_resnet20)
    assert torch.equal(model.layer3[2].conv2.weight, published_resnet20["module.layer3.2.conv2.weight"])


def test_published_resnet20_classifies_real_images(published_resnet20, cifar10_test_images):
    """81.0 % on all 5,000 of these images; a wrong normalization, shortcut or channel order falls far below."""
    data = cifar10_test_images(per_class=40)
    assert len(data.labels) == 400
    model = MODELS["resnet20"]().eval()
    load_float_weights(model, published_resnet20)
    assert 0.75 < accuracy(model, data, sampler=None) < 0.87
