import pytest
import torch

from liquidmm.image_tokenizer.training.codebook import MovingCodebook, code_usage, kmeans
from liquidmm.image_tokenizer.vqgan import Quantizer


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_kmeans_finds_separate_clouds():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    cloud = centers.repeat_interleave(50, 0) + torch.randn(200, 2, generator=random()) * 0.1
    found = kmeans(cloud, 4, 20, random(2))
    # Every true center has one found close by, whatever the random start was.
    assert torch.cdist(centers, found).min(1).values.max() < 0.1


def test_kmeans_is_seeded_and_lowers_error():
    cloud = torch.randn(300, 3, generator=random())
    first, second = kmeans(cloud, 16, 5, random(1)), kmeans(cloud, 16, 5, random(1))
    assert torch.equal(first, second)
    start = kmeans(cloud, 16, 0, random(1))
    error = [torch.cdist(cloud, c).min(1).values.square().mean() for c in (start, first)]
    assert error[1] < error[0]


def test_kmeans_with_fewer_vectors_than_codes():
    centers = kmeans(torch.eye(3), 8, 0, random())
    assert centers.shape == (8, 3)
    assert len(torch.unique(centers, dim=0)) == 8
    assert torch.cdist(centers, torch.eye(3)).min(1).values.max() < 0.1


def moving(codes: int = 4, decay: float = 0.5) -> MovingCodebook:
    quantizer = Quantizer(codes, 2)
    quantizer.embedding.weight.data.copy_(torch.arange(codes * 2.0).view(codes, 2))
    return MovingCodebook(quantizer, decay)


def test_update_moves_code_to_average_of_latents():
    book = moving()
    latents = torch.tensor([[2.0, 4.0], [6.0, 8.0]]).T.reshape(1, 2, 1, 2)  # two vectors
    book.update(latents, torch.tensor([[[1, 1]]]))
    # Code 1 was at (2, 3) with weight 1; it gets (2, 4) and (6, 8) in one step.
    uses = 0.5 * 1 + 0.5 * 2
    wanted = (0.5 * torch.tensor([2.0, 3.0]) + 0.5 * torch.tensor([8.0, 12.0])) / uses
    weight = book.quantizer.embedding.weight
    torch.testing.assert_close(weight[1], wanted)
    torch.testing.assert_close(weight[[0, 2, 3]], torch.tensor([[0.0, 1], [4, 5], [6, 7]]))
    assert book.idle.tolist() == [1, 0, 1, 1]
    report = book.report()
    assert (report["codes_used"], round(report["perplexity"], 6)) == (0.25, 1.0)
    assert book.report()["codes_used"] == 0.0


def test_unused_code_keeps_its_vector():
    book = moving(decay=0.1)
    for _ in range(50):
        book.update(torch.zeros(1, 2, 1, 1), torch.tensor([[[0]]]))
    torch.testing.assert_close(book.quantizer.embedding.weight[3], torch.tensor([6.0, 7.0]))


def test_dead_codes_restart_at_current_latents():
    book = moving()
    latents = torch.tensor([[100.0, 200.0]]).T.reshape(1, 2, 1, 1)
    for _ in range(3):
        book.update(torch.zeros(1, 2, 1, 1), torch.tensor([[[0]]]))
    assert book.restart(latents, after=4, random=random()).tolist() == []
    moved = book.restart(latents, after=3, random=random())
    assert moved.tolist() == [1, 2, 3]
    weight = book.quantizer.embedding.weight
    assert weight[1:].tolist() == [[100.0, 200.0]] * 3
    assert book.idle.tolist() == [0, 0, 0, 0]
    # A restarted code counts as used once.
    book.update(latents, torch.tensor([[[2]]]))
    torch.testing.assert_close(weight[2], torch.tensor([100.0, 200.0]))


def test_codebook_state_round_trip():
    book, other = moving(), moving()
    book.update(torch.ones(1, 2, 1, 1), torch.tensor([[[2]]]))
    other.load_state_dict({name: value.clone() for name, value in book.state_dict().items()})
    for name, value in book.state_dict().items():
        assert torch.equal(other.state_dict()[name], value)


@pytest.mark.parametrize(
    ("counts", "used", "perplexity"),
    [([5, 5, 0, 0], 0.5, 2.0), ([9, 0], 0.5, 1.0), ([0, 0], 0.0, 0.0)],
)
def test_code_usage(counts, used, perplexity):
    usage = code_usage(torch.tensor(counts))
    assert usage == pytest.approx({"codes_used": used, "perplexity": perplexity})
