"""Every task from its data folder to its report, with a model that knows the icons by heart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from liquidmm.errors import CheckpointError, ConfigError, DataError
from liquidmm.evaluate import classifier
from liquidmm.evaluate.report import Report
from liquidmm.evaluate.runner import TASKS, EvaluateConfig, run
from liquidmm.image_tokenizer.tokenizer import VQGANTokenizer
from liquidmm.image_tokenizer.vqgan import VQGAN, VQGANConfig
from liquidmm.model.expand import ExpandConfig, expand
from liquidmm.model.init_model import InitConfig, create_base_model

QUICK = classifier.ClassifierConfig(width=8, features=16, steps=80, batch=16, learning_rate=1e-2)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder with a random image tokenizer and nothing else."""
    config = VQGANConfig(
        resolution=32,
        base_channels=8,
        channel_multipliers=(1, 1, 2, 2),
        num_res_blocks=1,
        latent_channels=8,
        code_dim=4,
        codebook_size=16,
    )
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        VQGANTokenizer(VQGAN(config)).save(folder / "image_tokenizer")
    return folder


@pytest.fixture
def evaluate(monkeypatch: pytest.MonkeyPatch, checkpoint: Path, icons: Path, model: Any) -> Any:
    """Run a task on the tiny icons."""
    monkeypatch.setattr(classifier, "ClassifierConfig", lambda: QUICK)

    def call(name: str, **options: Any) -> Report:
        options = {"data": icons, "checkpoint": checkpoint, "batch": 4, **options}
        return run(name, EvaluateConfig(**options), lambda folder, device: model)

    return call


def test_the_real_thing_fits(
    checkpoint: Path, icons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny untrained Liquid goes through every task that asks the model."""
    monkeypatch.setattr(classifier, "ClassifierConfig", lambda: QUICK)
    shape = InitConfig(
        vocab_size=300,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=16,
        max_position_embeddings=256,
    )
    base = create_base_model(["a red apple, noto style"], tmp_path / "base", shape)
    images = checkpoint / "image_tokenizer"
    expand(base, tmp_path / "liquid", ExpandConfig(image_tokenizer=images, sizes=((32, 32),)))
    options: Any = {"checkpoint": tmp_path / "liquid", "device": "cpu", "batch": 2}
    for name in ("prompt-fidelity", "captions"):
        config = EvaluateConfig(data=icons, n=2, out=tmp_path / "out", **options)
        report = run(name, config)
        assert report.counts["trained"].n == 2
        assert run(name, config) == report
    chat = {
        "messages": [
            {"role": "user", "content": "<image>\nIs there a dog?"},
            {"role": "assistant", "content": "yes"},
        ],
        "images": ["images/noto/apple.png"],
        "tasks": ["presence"],
        "split": "held_out",
    }
    (icons / "chat.jsonl").write_text(json.dumps(chat) + "\n")
    report = run("scenes", EvaluateConfig(data=icons, **options))
    assert report.counts["all"].n == 1
    config = EvaluateConfig(data=icons, out=tmp_path / "docs", n=2, **options)
    run("contact-sheet", config)
    assert (tmp_path / "docs" / "contact-sheet.png").is_file()


def test_prompt_fidelity(evaluate: Any, model: Any) -> None:
    report = evaluate("prompt-fidelity", n=5, seed=7)
    result = report.to_dict()
    assert list(result["figures"])[:5] == [
        "trained",
        "trained_features",
        "held_out_pairs",
        "held_out_pairs_features",
        "unguided",
    ]
    assert result["figures"]["trained"] == {"value": 100.0, "unit": "%"}
    assert result["figures"]["held_out_pairs"] == {"value": 100.0, "unit": "%"}
    assert result["figures"]["chance"]["value"] == pytest.approx(100 / 6, abs=1e-4)
    assert result["figures"]["n"]["value"] == 5
    assert result["counts"]["held_out_pairs"]["n"] == 1
    # The same blank for every prompt is right for at most one concept in each style.
    assert result["counts"]["unguided"]["right"] <= 2
    assert [seed for _, seed, _ in model.drawn] == [7, 8, 9, 10, 11, 7, 7, 8, 9, 10, 11]
    assert [guidance for _, _, guidance in model.drawn] == [3.0] * 6 + [1.0] * 5
    assert model.drawn[0][0] == model.drawn[6][0]
    assert result["settings"]["sampling"]["guidance"] == 3.0


def test_guidance_may_be_changed(evaluate: Any, model: Any) -> None:
    report = evaluate("prompt-fidelity", n=1, guidance=5.0)
    assert [guidance for _, _, guidance in model.drawn] == [5.0, 5.0, 1.0]
    assert report.settings["sampling"]["guidance"] == 5.0


def test_an_interrupted_run_goes_on(evaluate: Any, model: Any, tmp_path: Path) -> None:
    first = evaluate("prompt-fidelity", n=3, out=tmp_path / "out")
    drawn = len(model.drawn)
    assert evaluate("prompt-fidelity", n=3, out=tmp_path / "out").figures == first.figures
    assert len(model.drawn) == drawn == 7
    result = json.loads((tmp_path / "out" / "prompt-fidelity" / "result.json").read_text())
    assert result == first.to_dict()
    assert len(list((tmp_path / "out/prompt-fidelity/trained").glob("*.png"))) == 3
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        evaluate("prompt-fidelity", n=3, seed=1, out=tmp_path / "out")


def test_answers_about_other_data_do_not_count(evaluate: Any, icons: Path, tmp_path: Path) -> None:
    evaluate("captions", out=tmp_path / "out")
    with (icons / "records.jsonl").open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"other settings \(data_fingerprint\)"):
        evaluate("captions", out=tmp_path / "out")


def test_captions(evaluate: Any, model: Any, tmp_path: Path) -> None:
    report = evaluate("captions", out=tmp_path)
    result = report.to_dict()
    assert {name: figure["value"] for name, figure in result["figures"].items()} == {
        "trained": 100.0,
        "trained_style": 100.0,
        "held_out_pairs": 100.0,
        "held_out_pairs_style": 100.0,
        "chance": pytest.approx(100 / 6, abs=1e-4),
        "chance_style": 50.0,
    }
    assert result["counts"]["trained"]["n"] == 9
    evaluate("captions", out=tmp_path)
    assert model.described == 10


def test_captions_that_name_another_thing(evaluate: Any, model: Any) -> None:
    model.describe = lambda image: "a green apple, noto style"
    report = evaluate("captions")
    # Two of the nine trained icons are green apples; "apple" is not one.
    assert (report.counts["trained"].right, report.counts["trained"].n) == (2, 9)
    assert report.counts["held_out_pairs_style"].right == 0


def test_captions_may_start_with_the_kind(evaluate: Any, model: Any) -> None:
    model.describe = lambda image: "a tree: apple, noto style"
    assert evaluate("captions").counts["trained"].right == 2


def test_scenes(evaluate: Any, tmp_path: Path) -> None:
    folder = tmp_path / "scenes"
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "0.png")

    def line(key: str, split: str, *turns: tuple[str, str, str]) -> str:
        messages = []
        for _, question, answer in turns:
            picture = "" if messages else "<image>\n"
            messages.append({"role": "user", "content": picture + question})
            messages.append({"role": "assistant", "content": answer})
        row = {
            "key": key,
            "split": split,
            "messages": messages,
            "images": ["0.png"],
            "tasks": [task for task, _, _ in turns],
        }
        return json.dumps(row) + "\n"

    (folder / "chat.jsonl").write_text(
        line("a", "train", ("count", "How many?", "two"))
        + line(
            "b",
            "held_out",
            ("presence", "Is there a dog?", "a dog at the top left: yes"),
            ("relation", "Is the dog to the left of the cat?", "no"),
            ("relation", "Is the dog above the cat?", "a dog at the top left: yes"),
            ("count", "How many dogs?", "two"),
        )
        + line(
            "c", "held_out", ("presence", "Is there a cat?", "no"), ("count", "How many?", "two")
        )
        + line("d", "held_out", ("count", "How many dogs?", "one"))
    )
    report = evaluate("scenes", data=folder)
    counts = {name: (tally.right, tally.n) for name, tally in report.counts.items()}
    assert counts == {
        "all": (4, 7),
        "above_below": (1, 1),
        "above_below_chance": (1, 1),
        "count": (2, 3),
        "count_chance": (2, 3),
        "left_right": (0, 1),
        "left_right_chance": (1, 1),
        "presence": (1, 2),
        "presence_chance": (1, 2),
    }
    assert evaluate("scenes", data=folder, n=3).counts["all"].n == 3


def test_scenes_without_tasks(evaluate: Any, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "<image>Who?"}, '
        '{"role": "assistant", "content": "me"}], "images": ["0.png"], "split": "held_out"}\n'
    )
    with pytest.raises(DataError, match="chat.jsonl:1: 'tasks' must name"):
        evaluate("scenes", data=tmp_path)


def test_reconstruction(evaluate: Any) -> None:
    report = evaluate("reconstruction", n=6)
    figures = {name: figure.value for name, figure in report.figures.items()}
    assert figures["trained_n"] == 6
    assert figures["held_out_pairs_n"] == 1
    assert figures["held_out_concepts_n"] == 2
    assert 0 < figures["trained_psnr_mean"] < 40
    assert 100 / 16 <= figures["trained_codebook_use"] <= 100
    assert 1 <= figures["trained_codebook_perplexity"] <= 16


def test_contact_sheet(evaluate: Any, tmp_path: Path) -> None:
    out = tmp_path / "docs"
    report = evaluate("contact-sheet", out=out)
    assert report.settings["file"] == str(out / "contact-sheet.png")
    with Image.open(out / "contact-sheet.png") as sheet:
        # Two blocks of three rows, twelve columns of 96 pixels and their gaps.
        assert sheet.width > 12 * 96
        assert sheet.height > 6 * 96
    assert [path.name for path in out.iterdir()] == ["contact-sheet.png"]


def test_contact_sheet_needs_a_folder(evaluate: Any) -> None:
    with pytest.raises(ConfigError, match="--out FOLDER"):
        evaluate("contact-sheet")


def test_unknown_task(evaluate: Any) -> None:
    with pytest.raises(ConfigError, match=r"no task 'caption'\. Did you mean 'captions'\?"):
        evaluate("caption")


@pytest.mark.parametrize("name", [*TASKS])
def test_missing_data_names_the_command(evaluate: Any, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Make it with `liquid data (icons|scenes|text)"):
        evaluate(name, data=tmp_path / "nothing", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_checkpoint(evaluate: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such folder"):
        evaluate("captions", checkpoint=tmp_path / "nothing")


@pytest.mark.parametrize("options", [{"n": 0}, {"batch": 0}, {"seed": -1}])
def test_numbers_out_of_range(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="evaluate.(n|batch|seed)"):
        EvaluateConfig(**options)  # type: ignore[arg-type]
