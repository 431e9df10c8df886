"""Saving, loading, the published layout, and the errors of broken folders."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AddedToken, AutoTokenizer, GemmaConfig, GemmaForCausalLM, GemmaTokenizer

from liquidmm.errors import CheckpointError, ConfigError, LiquidError
from liquidmm.model.checkpoint import Checkpoint, local_folder
from liquidmm.model.processor import LiquidProcessor, read_vocabulary
from liquidmm.vocabulary import SPECIAL_TOKENS, Vocabulary


def test_load_gives_matching_parts(checkpoint, checkpoint_folder):
    assert checkpoint.model.dtype == torch.float32
    assert not checkpoint.model.training
    assert checkpoint.processor.sizes == ((16, 16),)
    assert checkpoint.processor.resize == "crop"
    assert checkpoint.image_tokenizer.codebook_size == checkpoint.vocabulary.codebook_size == 16
    assert read_vocabulary(checkpoint_folder) == checkpoint.vocabulary


def test_folder_is_a_stock_model(checkpoint_folder):
    assert sorted(path.name for path in checkpoint_folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "image_tokenizer",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((checkpoint_folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert json.loads((checkpoint_folder / "processor_config.json").read_text()) == {
        "processor_class": "LiquidProcessor",
        "vocabulary": read_vocabulary(checkpoint_folder).to_dict(),
        "sizes": [[16, 16]],
        "resize": "crop",
    }


def test_save_of_loaded_checkpoint_is_byte_identical(checkpoint, checkpoint_folder, tmp_path):
    checkpoint.save(tmp_path / "out")
    for path in checkpoint_folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(checkpoint_folder)
            assert (tmp_path / "out" / name).read_bytes() == path.read_bytes(), name


def test_save_bfloat16_in_shards(checkpoint, tmp_path):
    folder = checkpoint.save(tmp_path / "out", "bfloat16", max_shard_size="20KB")
    shards = list(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size < 30_000 for path in shards)
    again = Checkpoint.load(folder, device="cpu")
    assert again.model.dtype == torch.float32
    assert Checkpoint.load(folder, dtype="bfloat16").model.dtype == torch.bfloat16
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    for name, value in checkpoint.model.state_dict().items():
        expected = value.bfloat16().float()
        torch.testing.assert_close(again.model.state_dict()[name], expected, atol=0, rtol=0)
    assert again.model.get_output_embeddings().weight is again.model.get_input_embeddings().weight
    assert checkpoint.model.dtype == torch.float32


@pytest.mark.parametrize("dtype", ["auto", "float31"])
def test_save_with_invalid_dtype_writes_nothing(checkpoint, tmp_path, dtype):
    with pytest.raises(ConfigError, match=dtype):
        checkpoint.save(tmp_path / "out", dtype)
    assert list(tmp_path.iterdir()) == []


def test_save_keeps_existing_folder_unless_overwrite(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("keep")
    with pytest.raises(LiquidError, match="exists"):
        checkpoint.save(tmp_path / "out")
    assert (tmp_path / "out/mine.txt").read_text() == "keep"
    checkpoint.save(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out/mine.txt").exists()


def test_save_failure_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(LiquidProcessor, "save_pretrained", full)
    with pytest.raises(LiquidError, match="No space left on device"):
        checkpoint.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_sizes_must_be_multiples_of_downsample_factor(checkpoint, image_tokenizer):
    def with_sizes(*sizes):
        parts = (checkpoint.processor.tokenizer, checkpoint.vocabulary, sizes, "pad")
        return replace(
            checkpoint, processor=LiquidProcessor(*parts), image_tokenizer=image_tokenizer
        )

    other = with_sizes((8, 16), (16, 8))
    assert (other.processor.sizes, other.processor.resize) == (((8, 16), (16, 8)), "pad")
    assert other.model is checkpoint.model
    with pytest.raises(CheckpointError, match="sizes.* factor 4.*16 x 6"):
        with_sizes((16, 6))


def test_checkpoint_without_image_tokenizer(checkpoint_folder, image_tokenizer_folder, tmp_path):
    folder = tmp_path / "text"
    shutil.copytree(checkpoint_folder, folder)
    shutil.rmtree(folder / "image_tokenizer")
    loaded = Checkpoint.load(folder)
    assert loaded.image_tokenizer is None
    with pytest.raises(CheckpointError, match="has no image tokenizer"):
        loaded.require_image_tokenizer()
    given = Checkpoint.load(folder, image_tokenizer=image_tokenizer_folder)
    assert given.image_tokenizer.codebook_size == 16


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The layout of Junfeng5/Liquid_V1_7B, narrow: 264192 rows, 256000 tokens, renamed ids."""
    folder = tmp_path_factory.mktemp("published") / "Liquid_V1_7B"
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]", *SPECIAL_TOKENS]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    tokens = [*specials, *turns, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh"]
    tokens += [f"w{index}" for index in range(256000 - len(tokens))]
    tokenizer = GemmaTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[])
    tokenizer.add_tokens([AddedToken(token, special=True) for token in (*SPECIAL_TOKENS, *turns)])
    tokenizer.save_pretrained(folder)
    shape = {"hidden_size": 8, "intermediate_size": 8, "head_dim": 4, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    GemmaForCausalLM(GemmaConfig(vocab_size=264192, **shape, **heads)).save_pretrained(folder)
    return folder


def test_published_layout_loads_and_saves_as_ours(published, tmp_path):
    expected = Vocabulary(
        text_size=256000,
        image_offset=256000,
        codebook_size=8192,
        boi=7,
        eoi=8,
        unconditional=9,
    )
    assert read_vocabulary(published) == expected
    loaded = Checkpoint.load(published)
    assert loaded.vocabulary == expected
    assert type(loaded.model) is GemmaForCausalLM
    assert loaded.processor.sizes == ((512, 512),)
    assert loaded.processor.sequences.unconditional_prompt() == [2, 9, 7]
    # It has no chat template; the reference implementation uses Gemma's turns.
    ids, _ = loaded.processor.sequences.chat([{"role": "user", "content": "a"}], [], True)
    text = "<bos><start_of_turn>user\na<end_of_turn>\n<start_of_turn>model\n"
    assert loaded.processor.tokenizer.decode(ids) == text

    folder = loaded.save(tmp_path / "out")
    assert (folder / "processor_config.json").is_file()
    assert read_vocabulary(folder) == loaded.vocabulary
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == [7, 8, 9]


def _remove(name):
    return lambda folder: (folder / name).unlink()


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


def _edit(name, **changes):
    def edit(folder):
        data = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**data, **changes}))

    return edit


def _move_boi(folder):
    data = json.loads((folder / "processor_config.json").read_text())
    data["vocabulary"]["boi"] = 4
    (folder / "processor_config.json").write_text(json.dumps(data))


def _drop_a_weight(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (shutil.rmtree, "no such folder"),
        (_remove("config.json"), r"config\.json"),
        (_write("config.json", "{"), r"config\.json: cannot be read"),
        (_write("config.json", "[]"), r"config\.json: expected a JSON object"),
        (_write("processor_config.json", "nonsense"), r"processor_config\.json: cannot be read"),
        (_remove("processor_config.json"), r"processor_config\.json is missing.*published"),
        (_edit("processor_config.json", vocabulary={"boi": 1}), "vocabulary"),
        (_edit("processor_config.json", sizes=[64]), r"sizes.*\[64\]"),
        (_edit("processor_config.json", resize="stretch"), "resize.*'stretch'"),
        (_edit("processor_config.json", sampling=[1]), r"sampling.*\[1\]"),
        (_edit("processor_config.json", sizes=[[15, 16]]), "sizes.*15 x 16"),
        (_edit("config.json", vocab_size=300), "vocab_size.*300"),
        (_move_boi, r"tokenizer.*\[5, 6, 7\]"),
        (_remove("tokenizer.json"), "tokenizer cannot be read"),
        (_write("tokenizer.json", "{}"), "tokenizer cannot be read"),
        (_remove("model.safetensors"), "weights cannot be read"),
        (_write("model.safetensors", "x" * 100), "weights cannot be read"),
        (_drop_a_weight, r"model\.norm\.weight"),
        (_remove("image_tokenizer/model.safetensors"), "image_tokenizer"),
    ],
)
def test_broken_folder_is_one_line_error(damage, words, checkpoint_folder, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint_folder, folder)
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        Checkpoint.load(folder)
    assert "\n" not in str(caught.value)


def test_unexpanded_model_names_expand(base_folder):
    with pytest.raises(CheckpointError, match=r"liquid expand"):
        Checkpoint.load(base_folder)


def test_unknown_hub_name_is_reported(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(CheckpointError, match="owner/name"):
        local_folder("owner/name")
