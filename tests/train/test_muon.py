import math

import pytest
import torch

from liquidmm.train.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(8, 8), (24, 8), (8, 24)])
def test_muon_equals_torch_up_to_bfloat16_rounding(shape):
    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random)
    gradients = [torch.randn(shape, generator=random) for _ in range(3)]
    results = []
    for make in (
        lambda weight: Muon([weight], 0.1, 0.2),
        lambda weight: torch.optim.Muon([weight], 0.1, 0.2, adjust_lr_fn="match_rms_adamw"),
    ):
        weight = torch.nn.Parameter(start.clone())
        optimizer = make(weight)
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        results.append(weight.detach())
    scale = 0.1 * 0.2 * math.sqrt(max(shape))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0.1 * scale)


@pytest.mark.parametrize("shape", [(16, 16), (48, 16), (16, 48)])
def test_orthogonalize_gives_singular_values_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    update = orthogonalize(matrix)
    assert update.shape == matrix.shape
    assert update.dtype == torch.float32
    values = torch.linalg.svdvals(update)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.25
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    cosine = torch.nn.functional.cosine_similarity(update.flatten(), (left @ right).flatten(), 0)
    assert float(cosine) > 0.95


def test_muon_state_dict_restores_momentum():
    weight = torch.nn.Parameter(torch.eye(4))
    optimizer = Muon([weight], 0.1)
    weight.grad = torch.ones(4, 4)
    optimizer.step()
    other = Muon([torch.nn.Parameter(torch.eye(4))], 0.1)
    other.load_state_dict(optimizer.state_dict())
    (state,) = other.state.values()
    torch.testing.assert_close(state["momentum_buffer"], torch.full((4, 4), 0.05))
