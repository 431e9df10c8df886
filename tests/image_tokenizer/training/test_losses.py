import pytest
import torch

from liquidmm.errors import CheckpointError, ConfigError
from liquidmm.image_tokenizer.training.config import ImageLossConfig
from liquidmm.image_tokenizer.training.losses import (
    LPIPS,
    PatchDiscriminator,
    adaptive_weight,
    hinge_loss,
    pixel_loss,
)

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {  # torchvision's VGG16: position in `features` -> channels in and out
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    17: (256, 512),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}


@pytest.fixture(scope="module")
def vgg16():
    random = torch.Generator().manual_seed(0)
    state = {}
    for index, (inside, outside) in CONVOLUTIONS.items():
        scale = (2 / (9 * inside)) ** 0.5
        state[f"features.{index}.weight"] = (
            torch.randn(outside, inside, 3, 3, generator=random) * scale
        )
        state[f"features.{index}.bias"] = torch.zeros(outside)
    return state


def random_images(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_pixel_loss_equals_literal():
    target = torch.zeros(1, 1, 2, 2)
    made = torch.tensor([[[[0.0, 0.4], [0.0, 0.0]]]])
    config = ImageLossConfig(l1=1.0, l2=10.0, edges=3.0)
    # l1 0.1, l2 0.04, edges: (0.4 + 0) / 2 across and (0 + 0.4) / 2 down
    assert pixel_loss(config, target, made).item() == pytest.approx(0.1 + 0.4 + 3 * 0.4)


def test_chroma_loss_ignores_brightness():
    config = ImageLossConfig(l1=0.0, l2=0.0, chroma=2.0)
    target, brighter = torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.3)
    assert pixel_loss(config, target, brighter).item() == pytest.approx(0.0, abs=1e-6)
    redder = torch.tensor([0.3, 0.0, 0.0]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    # errors from their mean 0.1: 0.2, 0.1, 0.1
    assert pixel_loss(config, target, redder).item() == pytest.approx(2 * 0.4 / 3)


def test_lpips_equals_plain_computation(vgg16):
    linear = {
        f"lin{i}.model.1.weight": torch.rand(1, w, 1, 1, generator=torch.Generator().manual_seed(i))
        for i, w in enumerate(WIDTHS)
    }
    a, b = random_images(2, 3, 32, 32), random_images(2, 3, 32, 32, seed=2)
    mean = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)

    def features(x):
        x, found = (x - mean) / scale, []
        for index in CONVOLUTIONS:
            if index in (5, 10, 17, 24):
                x = torch.nn.functional.max_pool2d(x, 2)
            weight, bias = (vgg16[f"features.{index}.{n}"] for n in ("weight", "bias"))
            x = torch.nn.functional.conv2d(x, weight, bias, padding=1).relu()
            if index in (2, 7, 14, 21, 28):
                found.append(x / (x.square().sum(1, keepdim=True) + 1e-10).sqrt())
        return found

    target = sum(
        ((fa - fb) ** 2 * linear[f"lin{i}.model.1.weight"]).sum(1).mean()
        for i, (fa, fb) in enumerate(zip(features(a), features(b), strict=True))
    )
    distance = LPIPS(vgg16, linear)
    torch.testing.assert_close(distance(a, b), target, rtol=1e-4, atol=1e-6)
    assert distance(a, a).item() == 0
    made = b.clone().requires_grad_()
    distance(a, made).backward()
    assert made.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in distance.parameters())


def test_lpips_rejects_other_weights(vgg16):
    with pytest.raises(CheckpointError, match=r"features.0.weight .*BSD-3-Clause"):
        LPIPS({}, None)
    with pytest.raises(CheckpointError, match=r"lin0.model.1.weight .*BSD-2-Clause"):
        LPIPS(vgg16, {})
    with pytest.raises(ConfigError, match=r"vgg16-397923af.pth \(BSD-3-Clause\)"):
        ImageLossConfig(lpips=1.0)


def test_discriminator_shape_and_hinge_loss():
    torch.manual_seed(0)
    scores = PatchDiscriminator(8, 2)(random_images(2, 3, 32, 32))
    assert scores.shape[:2] == (2, 1)
    real, made = torch.tensor([2.0, 0.0]), torch.tensor([-2.0, 0.5])
    assert hinge_loss(real, made).item() == pytest.approx(0.5 * (0.5 + 0.75))


def test_adaptive_weight_is_ratio_of_gradients():
    layer = torch.tensor([3.0, 4.0], requires_grad=True)
    weight = adaptive_weight((layer * 2).sum(), (layer * 0.5).sum(), layer)
    assert weight.item() == pytest.approx(4.0, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight((layer * 1e9).sum(), (layer * 0.0).sum(), layer).item() == 1e4
