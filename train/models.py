"""Network definitions: what intcert trains, ships and is tested on.

Every network maps float images ``[N, C, H, W]`` on the [0, 1] scale to logits ``[N, num_classes]``. Its first module is
:class:`Normalize`, so that a saved program is complete: nobody has to know the data set's mean and standard deviation
to run it, and the importer folds both into the first integer requantization.

The two ImageNet networks are defined here, with torchvision's state-dict names, because torchvision's wheels register
operators of a CUDA build and cannot be imported beside a CPU build of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

# The per-channel statistics of ImageNet, on the [0, 1] scale. The public CIFAR-10 weights use them too.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MNIST_MEAN = (0.1307,)
MNIST_STD = (0.3081,)


class Normalize(nn.Module):
    """``(x - mean) / std`` per channel, on images float ``[N, C, H, W]`` in [0, 1].

    ``mean`` and ``std`` (one number a channel, [0, 1] scale) are buffers ``[C, 1, 1]`` and travel with a checkpoint.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).reshape(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


def load_float_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load a published float checkpoint into ``model``, in place.

    Accepts the ``module.`` prefix that ``nn.DataParallel`` leaves. Published checkpoints hold no normalization; the one
    that ``model`` was built with stays. Everything else must match.

    Raises:
        RuntimeError: from ``load_state_dict``, naming every missing, unexpected or misshapen entry.
    """
    kept = {name: value for name, value in model.state_dict().items() if name.startswith("normalize.")}
    model.load_state_dict(kept | {name.removeprefix("module."): value for name, value in state.items()})


# CIFAR ResNets (He et al. 2015, section 4.2)


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters (option A of He et al. 2015).

    Where the block changes shape, the shortcut takes every second row and column and pads the new channels with zeros,
    half of them before the old channels and half behind.
    """

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.stride = stride
        self.pad = (planes - in_planes) // 2

    def shortcut(self, x: Tensor) -> Tensor:
        if self.stride == 1 and self.pad == 0:
            return x
        return functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return functional.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of depth ``6 * blocks_per_stage + 2``, state-dict names of akamaster/pytorch_resnet_cifar10."""

    def __init__(self, blocks_per_stage: int, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(len(mean), 16, 3, 1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks_per_stage, stride=1)
        self.layer2 = self._stage(16, 32, blocks_per_stage, stride=2)
        self.layer3 = self._stage(32, 64, blocks_per_stage, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(64, num_classes)
        _init_kaiming(self)

    @staticmethod
    def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        first = CifarBlock(in_planes, planes, stride)
        return nn.Sequential(first, *(CifarBlock(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.bn1(self.conv1(self.normalize(x))))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(torch.flatten(self.avgpool(x), 1))


def resnet20(
    num_classes: int = 10, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> nn.Module:
    """ResNet-20 for 32x32 images: 0.27 M parameters, 41 M multiply-adds."""
    return CifarResNet(3, num_classes, mean, std)


def resnet110(
    num_classes: int = 10, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> nn.Module:
    """ResNet-110 for 32x32 images, the network of Cohen et al. 2019 on CIFAR-10: 1.7 M parameters."""
    return CifarResNet(18, num_classes, mean, std)


# small networks without residual adds


class FeedForward(nn.Module):
    """Normalization, ``features``, flatten, ``classifier``: the shape of every network without branches here."""

    def __init__(self, features: nn.Module, classifier: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(self.normalize(x)), 1))


def lenet(num_classes: int = 10, mean: Sequence[float] = MNIST_MEAN, std: Sequence[float] = MNIST_STD) -> nn.Module:
    """LeNet-5 (LeCun et al. 1998) with ReLU and max pooling, for 28x28x1 images."""
    features = nn.Sequential(
        nn.Conv2d(len(mean), 6, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
    classifier = nn.Sequential(
        nn.Linear(16 * 5 * 5, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, num_classes)
    )
    return FeedForward(features, classifier, mean, std)


def vgg(num_classes: int = 10, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> nn.Module:
    """VGG-style network (Simonyan and Zisserman 2014) for 32x32 images: six convolutions with batch normalization."""
    layers: list[nn.Module] = []
    in_planes = len(mean)
    for planes in (32, 64, 128):
        for _ in range(2):
            layers += [nn.Conv2d(in_planes, planes, 3, padding=1), nn.BatchNorm2d(planes), nn.ReLU()]
            in_planes = planes
        layers.append(nn.MaxPool2d(2))
    classifier = nn.Sequential(nn.Linear(128 * 4 * 4, 128), nn.ReLU(), nn.Dropout(0.5), nn.Linear(128, num_classes))
    model = FeedForward(nn.Sequential(*layers), classifier, mean, std)
    _init_kaiming(model)
    return model


def mlp(num_classes: int = 10, mean: Sequence[float] = MNIST_MEAN, std: Sequence[float] = MNIST_STD) -> nn.Module:
    """Two hidden layers of 256 units on flattened 28x28x1 images."""
    width = 256
    classifier = nn.Sequential(
        nn.Linear(28 * 28 * len(mean), width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )
    return FeedForward(nn.Identity(), classifier, mean, std)


# ResNet-50 (He et al. 2015, table 1; torchvision's v1.5: the stride sits in the 3x3 convolution)


class Bottleneck(nn.Module):
    """1x1 reduce, 3x3, 1x1 expand by four; a 1x1 convolution as shortcut (option B) where the shape changes."""

    expansion = 4

    def __init__(self, in_planes: int, planes: int, stride: int) -> None:
        super().__init__()
        out_planes = planes * self.expansion
        self.conv1 = nn.Conv2d(in_planes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, out_planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_planes)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != out_planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, out_planes, 1, stride, bias=False), nn.BatchNorm2d(out_planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = functional.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return functional.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet50(nn.Module):
    """ResNet-50 for 224x224 images, state-dict names of torchvision."""

    def __init__(self, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.conv1 = nn.Conv2d(len(mean), 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(64, 64, 3, stride=1)
        self.layer2 = self._stage(256, 128, 4, stride=2)
        self.layer3 = self._stage(512, 256, 6, stride=2)
        self.layer4 = self._stage(1024, 512, 3, stride=2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2048, num_classes)
        _init_kaiming(self)

    @staticmethod
    def _stage(in_planes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
        out_planes = planes * Bottleneck.expansion
        rest = (Bottleneck(out_planes, planes, 1) for _ in range(blocks - 1))
        return nn.Sequential(Bottleneck(in_planes, planes, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(functional.relu(self.bn1(self.conv1(self.normalize(x)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet50(
    num_classes: int = 1000, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> nn.Module:
    """ResNet-50 for 224x224 images: 25.6 M parameters."""
    return ResNet50(num_classes, mean, std)


# MobileNetV2 (Sandler et al. 2018, table 2)


def _conv_bn_relu6(in_planes: int, planes: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_planes, planes, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(planes), nn.ReLU6())


class InvertedResidual(nn.Module):
    """1x1 expand, 3x3 depthwise, 1x1 project without activation; a residual add where the shape is kept."""

    def __init__(self, in_planes: int, planes: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = in_planes * expand
        layers = [] if expand == 1 else [_conv_bn_relu6(in_planes, hidden, 1)]
        self.conv = nn.Sequential(
            *layers,
            _conv_bn_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, planes, 1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.residual = stride == 1 and in_planes == planes

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 of width 1.0 for 224x224 images, state-dict names of torchvision."""

    # (expansion, channels, blocks, stride of the first block)
    STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        layers: list[nn.Module] = [_conv_bn_relu6(len(mean), 32, 3, 2)]
        in_planes = 32
        for expand, planes, blocks, stride in self.STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(in_planes, planes, stride if block == 0 else 1, expand))
                in_planes = planes
        layers.append(_conv_bn_relu6(in_planes, 1280, 1))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, num_classes))
        _init_kaiming(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(self.normalize(x)))
        return self.classifier(torch.flatten(x, 1))


def mobilenetv2(
    num_classes: int = 1000, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> nn.Module:
    """MobileNetV2 of width 1.0 for 224x224 images: 3.5 M parameters."""
    return MobileNetV2(num_classes, mean, std)


def _init_kaiming(model: nn.Module) -> None:
    """He et al. 2015 (b): variance-preserving convolutions, so that untrained networks have sane activations."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


@dataclass(frozen=True)
class ModelEntry:
    """One network of the registry; calling it builds the network, as calling ``build`` does."""

    build: Callable[..., nn.Module]
    input_shape: tuple[int, int, int]  # (C, H, W)

    def __call__(
        self,
        num_classes: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> nn.Module:
        """Build the network with new weights; an argument left out takes ``build``'s own default."""
        given = {"num_classes": num_classes, "mean": mean, "std": std}
        return self.build(**{name: value for name, value in given.items() if value is not None})


MODELS: dict[str, ModelEntry] = {
    "resnet20": ModelEntry(resnet20, (3, 32, 32)),
    "resnet110": ModelEntry(resnet110, (3, 32, 32)),
    "lenet": ModelEntry(lenet, (1, 28, 28)),
    "vgg": ModelEntry(vgg, (3, 32, 32)),
    "mlp": ModelEntry(mlp, (1, 28, 28)),
    "resnet50": ModelEntry(resnet50, (3, 224, 224)),
    "mobilenetv2": ModelEntry(mobilenetv2, (3, 224, 224)),
}
