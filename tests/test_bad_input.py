"""Whatever is wrong is said in a sentence, before any training step and before a run folder
appears.

Each case spoils one thing of a bench that would train, and is refused twice: from Python and from
the command line.
"""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from builders import SIDE, stripes, write_pairs
from PIL import Image
from safetensors.torch import load_file, save_file

from vitseg import cli
from vitseg.errors import ConfigError, DataError, RecipeError, RunError, VitsegError, WeightsError
from vitseg.events import RunStarted
from vitseg.model.segmenter import build_segmenter
from vitseg.model.weights import load_vit
from vitseg.recipe import Recipe
from vitseg.runs.run import train
from vitseg.settings import Folder, Model

SECONDS = 5
"""The aim is 2 s on a machine of one's own; this one may be shared."""


@dataclass
class Bench:
    """All that a run needs, in folders of its own, so that it can be spoilt."""

    root: Path
    recipe: Recipe

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def encoder(self) -> Path:
        return self.root / "encoder"

    @property
    def run(self) -> Path:
        return self.root / "run"


@pytest.fixture
def bench(
    tmp_path: Path, encoders: dict[str, str], tiny_recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> Bench:
    """Five pairs and a tiny encoder; no stage can be made, no hub can be reached."""

    def no_stage(*_: object, **__: object) -> None:
        raise AssertionError("a stage was about to be trained")

    monkeypatch.setattr("vitseg.runs.run.StageTraining", no_stage)
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # the discard port: refused at once
    shutil.copytree(encoders["dinov2"], tmp_path / "encoder")
    write_pairs(
        tmp_path / "data", {name: stripes(0, 1) for name in "abcde"}, classes=["ground", "wound"]
    )
    settings = {
        "data.source": Folder(path=str(tmp_path / "data")),
        "data.size": [28, 28],
        "device": "cpu",
    }
    return Bench(
        tmp_path, tiny_recipe.replace(settings | {"model.encoder": str(tmp_path / "encoder")})
    )


@dataclass
class Case:
    """How a bench is spoilt, the settings that go with it, and what the error must say ({data} and
    so on are paths).
    """

    error: type[VitsegError]
    said: tuple[str, ...]
    spoil: Callable[[Bench], object] = lambda bench: None
    settings: dict[str, Any] | None = None


def on_file(path: str, action: Callable[[Path], object]) -> Callable[[Bench], object]:
    return lambda bench: action(bench.root / path)


def write(path: str, content: bytes) -> Callable[[Bench], object]:
    return on_file(path, lambda file: file.write_bytes(content))


def remove(path: str) -> Callable[[Bench], object]:
    return on_file(path, Path.unlink)


def halve(path: str) -> Callable[[Bench], object]:
    return on_file(
        path, lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    )


def save_mask(pixels: np.ndarray) -> Callable[[Bench], object]:
    return on_file("data/masks/c.png", lambda file: Image.fromarray(pixels).save(file))


def in_config(**settings: Any) -> Callable[[Bench], object]:
    def change(file: Path) -> None:
        file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    return on_file("encoder/config.json", change)


def poison(file: Path) -> None:
    weights = load_file(file)
    weights["layernorm.weight"][3] = torch.nan
    save_file(weights, file, metadata={"format": "pt"})


def empty(bench: Bench) -> None:
    shutil.rmtree(bench.data)
    write_pairs(bench.data, {})


def setting(error: type[VitsegError], path: str, value: Any, *said: str) -> Case:
    return Case(error, (f"{path}: got {value!r}", *said), settings={path: value})


DATA = {
    "wrong folder": Case(
        DataError,
        (
            "{data}-not: cannot be looked into (No such file or directory).",
            "images/ and masks/ (same names)",
        ),
        lambda b: b.data.rename(f"{b.data}-moved"),
        {"data.source.path": "{data}-not"},
    ),
    "no pairs": Case(
        DataError, ("{data}: no image found.", "images/ and masks/ (same names)"), empty
    ),
    "no masks/": Case(
        DataError,
        ("{data}/masks: cannot be looked into (No such file or directory).",),
        on_file("data/masks", shutil.rmtree),
    ),
    "missing mask": Case(
        DataError,
        (
            "{data}: 1 problem.",
            "{data}/images/c.png: no mask of that name in masks/.",
            "Fix or remove",
        ),
        remove("data/masks/c.png"),
    ),
    "orphan mask": Case(
        DataError,
        ("{data}/masks/c.png: no image of that name in images/.",),
        remove("data/images/c.png"),
    ),
    "zero bytes": Case(
        DataError, ("{data}/images/c.png: cannot be read (",), write("data/images/c.png", b"")
    ),
    "truncated image": Case(
        DataError, ("{data}/images/c.png: cannot be read (",), halve("data/images/c.png")
    ),
    "truncated mask": Case(
        DataError, ("{data}/masks/c.png: cannot be read (",), halve("data/masks/c.png")
    ),
    "text for an image": Case(
        DataError, ("{data}/images/c.png: cannot be read (",), write("data/images/c.png", b"hello")
    ),
    "sizes that differ": Case(
        DataError,
        (
            (
                f"{{data}}/masks/c.png: size differs from its image (image {SIDE}x{SIDE}, mask "
                f"{SIDE}x20 pixels)."
            ),
        ),
        save_mask(stripes(0, 1)[:20]),
    ),
    "strange label": Case(
        DataError,
        ("{data}/masks/c.png: labels outside the classes: 7 in 192 pixels; allowed: 0, 1",),
        save_mask(stripes(0, 1, 7)),
        {"data.source.encoding": "index"},
    ),
    "ambiguous masks": Case(
        DataError,
        (
            "{data}: mask values [0, 1, 255], 3 in all: is 255 a class, or to be ignored?",
            "classes.json",
        ),
        lambda b: (save_mask(stripes(0, 1, 255))(b), remove("data/classes.json")(b)),
    ),
    "misspelt classes.json": Case(
        DataError,
        ("{data}/classes.json: ", "clases", "classes, encoding, ignore_value"),
        write("data/classes.json", b'{"clases": ["a", "b"]}'),
    ),
    "classes.json is a list": Case(
        DataError,
        ("{data}/classes.json: ", "It is a JSON object"),
        write("data/classes.json", b"[]"),
    ),
    "group that matches nothing": Case(
        DataError,
        ("data: group='patient', group_file=None,", "no group for 'a',"),
        settings={"data.group": "patient"},
    ),
    "group that is no expression": setting(ConfigError, "data.group", "(", "a regular expression"),
}
WEIGHTS = {
    "unknown encoder": Case(
        WeightsError,
        (
            "'dinov2-smal-packaged' is neither",
            "Did you mean 'dinov2-small-packaged'?",
            "save_pretrained",
        ),
        settings={"model.encoder": "dinov2-smal-packaged"},
    ),
    "no network": Case(
        WeightsError,
        (
            "model.encoder: 'vitseg-tests/none' cannot be fetched from the hub",
            '"dinov2-small-packaged"',
            "hf download",
        ),
        settings={"model.encoder": "vitseg-tests/none"},
    ),
    "config of 6 layers over 4": Case(
        WeightsError,
        ("{encoder}: config and weights disagree; missing keys: encoder.layer.4.",),
        in_config(num_hidden_layers=6),
    ),
    "config of another width": Case(WeightsError, ("{encoder}: ",), in_config(hidden_size=64)),
    "no model.safetensors": Case(
        WeightsError,
        ("{encoder}: the weights do not load (Error no file named model.safetensors",),
        remove("encoder/model.safetensors"),
    ),
    "no config.json": Case(
        WeightsError, ("{encoder}: no usable config.json",), remove("encoder/config.json")
    ),
    "broken config.json": Case(
        WeightsError, ("{encoder}: no usable config.json",), write("encoder/config.json", b"{")
    ),
    "another family": Case(
        WeightsError,
        ("{encoder}: the family 'bert' is not supported.", "dinov2"),
        in_config(model_type="bert"),
    ),
    "truncated weights": Case(
        WeightsError, ("{encoder}: the weights do not load",), halve("encoder/model.safetensors")
    ),
    "empty weights": Case(
        WeightsError,
        ("{encoder}: the weights do not load",),
        write("encoder/model.safetensors", b""),
    ),
    "layers as text": Case(
        WeightsError, ("{encoder}: no usable config.json",), in_config(num_hidden_layers="four")
    ),
    "broken preprocessor": Case(
        WeightsError,
        ("{encoder}/preprocessor_config.json: ", "got b'?'; allowed: Invalid JSON"),
        write("encoder/preprocessor_config.json", b"?"),
    ),
    "preprocessor is a list": Case(
        WeightsError,
        ("{encoder}/preprocessor_config.json: ", "got []; allowed: an object."),
        write("encoder/preprocessor_config.json", b"[]"),
    ),
    "deviation of 0": Case(
        WeightsError,
        ("{encoder}/preprocessor_config.json: ", "image_std.1: got 0; allowed: greater than 0."),
        write("encoder/preprocessor_config.json", b'{"image_std": [0.2, 0, 0.2]}'),
    ),
    "mean of two channels": Case(
        WeightsError,
        ("{encoder}/preprocessor_config.json: ", "image_mean.2: needs a value."),
        write("encoder/preprocessor_config.json", b'{"image_mean": [0.5, 0.5]}'),
    ),
    "mean that is no number": Case(
        WeightsError,
        ("{encoder}/preprocessor_config.json: ", "image_mean.0: got nan; allowed: a finite"),
        write("encoder/preprocessor_config.json", b'{"image_mean": [NaN, 0, 0]}'),
    ),
    "weights with nan": Case(
        WeightsError,
        ("{encoder}: layernorm.weight holds values that are not finite.",),
        on_file("encoder/model.safetensors", poison),
    ),
}
SETTINGS = {
    "too many unfrozen blocks": setting(
        ConfigError, "stages.2.unfrozen_blocks", 5, '0..4 or "all"', "This encoder has 4 blocks"
    ),
    "skips too deep": Case(
        ConfigError,
        ("model.skip_depths: got (1, 2, 3, 9)", "1..4"),
        settings={"model.skip_depths": [1, 2, 3, 9]},
    ),
    "gamma above 1": setting(
        RecipeError, "stages.1.schedule.gamma", 1.5, "less than or equal to 1"
    ),
    "gamma 0": setting(RecipeError, "stages.1.schedule.gamma", 0.0, "greater than 0"),
    "LR 0": setting(RecipeError, "stages.0.lr", 0.0, "greater than 0"),
    "LR 1000": setting(RecipeError, "stages.0.lr", 1e3, "less than or equal to 1"),
    "LR nan": setting(RecipeError, "stages.0.lr", float("nan"), "a finite number"),
    "LR as text": setting(RecipeError, "stages.0.lr", "1e-4", "a valid number"),
    "unknown setting": Case(
        RecipeError,
        ("stages.0.epoch: unknown setting; did you mean epochs",),
        settings={"stages.0.epoch": 1},
    ),
    "class weights": setting(
        ConfigError, "loss.class_weights", (1.0, 2.0, 3.0), "2 positive numbers, one a class"
    ),
    "no such device": setting(RecipeError, "device", "gpu", "'auto', 'cpu', 'cuda' or 'mps'"),
    "device that is not there": setting(
        ConfigError, "device", "cuda", "allowed: cpu", 'Use "auto".'
    ),
    "fp16 on cpu": setting(
        ConfigError, "precision", "fp16", "fp32, bf16", "fp16 needs cuda, the device is cpu."
    ),
}
FOLDERS = {
    "folder of another run": Case(
        RunError,
        ("{run}: holds a run already.", "vitseg resume {run}", "another folder"),
        lambda b: (b.run.mkdir(), (b.run / "events.jsonl").write_text("")),
    ),
    "unwritable folder": Case(
        RunError,
        ("{run}: cannot be written (", "choose another folder."),
        lambda b: b.run.write_text("a file is in the way"),
    ),
}
BROKEN_FILES = {
    "truncated weights": Case(WeightsError, ("{encoder}",), halve("encoder/model.safetensors")),
    "empty weights": Case(WeightsError, ("{encoder}",), write("encoder/model.safetensors", b"")),
    "layers as text": Case(WeightsError, ("{encoder}",), in_config(num_hidden_layers="four")),
    "broken preprocessor": Case(
        WeightsError, ("{encoder}",), write("encoder/preprocessor_config.json", b"?")
    ),
    "classes.json is a list": Case(
        DataError, ("{data}/classes.json",), write("data/classes.json", b"[]")
    ),
}
CASES = DATA | WEIGHTS | SETTINGS | FOLDERS | BROKEN_FILES
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def spoilt(
    bench: Bench, case: Case, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], list[str]]:
    """The settings to change, and the sentences to expect, of a bench that has been spoilt."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    case.spoil(bench)
    places = {"data": bench.data, "encoder": bench.encoder, "run": bench.run}
    settings = {
        k: v.format(**places) if k == "data.source.path" else v
        for k, v in (case.settings or {}).items()
    }
    return settings, [said.format(**places) for said in case.said]


def files_of(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*")))


@every_case
def test_bad_input_is_refused_before_anything_is_trained_or_made(
    bench: Bench, case: Case, monkeypatch: pytest.MonkeyPatch
):
    settings, expected = spoilt(bench, case, monkeypatch)
    before, began = files_of(bench.root), time.perf_counter()
    with pytest.raises(case.error) as refused:
        next(train(bench.recipe.replace(settings), bench.run))
    assert time.perf_counter() - began < SECONDS
    assert [said for said in expected if said not in str(refused.value)] == []
    assert files_of(bench.root) == before


@every_case
def test_the_command_line_says_it_in_one_sentence_and_exits_with_two(
    bench: Bench, case: Case, monkeypatch, capsys
):
    settings, expected = spoilt(bench, case, monkeypatch)
    bench.recipe.save(bench.root / "recipe.json")
    changes = [f"--set={path}={json.dumps(value)}" for path, value in settings.items()]
    assert cli.main(["run", str(bench.root / "recipe.json"), str(bench.run), *changes]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert_one_sentence(told.err, expected)


def assert_one_sentence(error: str, expected: list[str]) -> None:
    assert error.startswith("vitseg: ")
    assert error.count("vitseg: ") == 1
    assert "Traceback" not in error
    assert [said for said in expected if said not in error] == []


def test_the_bench_as_it_is_would_be_trained(bench: Bench):
    """The negative control."""
    events = train(bench.recipe, bench.run)
    assert isinstance(next(events), RunStarted)
    assert (bench.run / "recipe.json").exists()
    with pytest.raises(AssertionError, match="a stage was about to be trained"):
        next(events)


def test_the_command_line_would_train_it_too(bench: Bench):
    bench.recipe.save(bench.root / "recipe.json")
    with pytest.raises(AssertionError, match="a stage was about to be trained"):
        cli.main(["run", str(bench.root / "recipe.json"), str(bench.run)])


def test_a_folder_with_several_faults_gets_one_error_with_all_of_them(bench: Bench, capsys):
    remove("data/masks/a.png")(bench)
    write("data/images/b.png", b"")(bench)
    save_mask(stripes(0, 1)[:20])(bench)
    remove("data/images/d.png")(bench)
    bench.recipe.save(bench.root / "recipe.json")
    assert cli.main(["run", str(bench.root / "recipe.json"), str(bench.run)]) == 2
    said = [
        "4 problems.",
        "images/a.png: no mask",
        "images/b.png: cannot be read",
        "masks/c.png: size",
        "masks/d.png: no image",
    ]
    assert_one_sentence(capsys.readouterr().err, said)


def test_a_refusal_leaves_a_process_with_code_two_and_no_traceback(bench: Bench):
    """The one test in a process of its own: what a user's shell sees."""
    bench.recipe.replace({"data.source.path": str(bench.root / "nowhere")}).save(
        bench.root / "recipe.json"
    )
    command = [
        sys.executable,
        "-m",
        "vitseg",
        "run",
        str(bench.root / "recipe.json"),
        str(bench.run),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert_one_sentence(
        done.stderr,
        [f"{bench.root / 'nowhere'}: cannot be looked into (No such file or directory)."],
    )
    assert not bench.run.exists()


def test_a_hub_that_takes_the_question_and_never_answers_is_given_up_within_seconds(
    monkeypatch: pytest.MonkeyPatch,
):
    """What a firewall does that drops packets."""
    given_up = threading.Event()

    def ask() -> None:
        with pytest.raises(WeightsError, match="cannot be fetched from the hub"):
            load_vit("vitseg-tests/none")
        given_up.set()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(
            huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}"
        )
        threading.Thread(target=ask, daemon=True).start()
        assert given_up.wait(8)


# ---------------------------------------------------------------------- the other commands


@pytest.fixture
def saved_model(bench: Bench) -> Path:
    build_segmenter(Model(encoder=str(bench.encoder)), ("a", "b"), (28, 28), 0).save_pretrained(
        bench.root / "model"
    )
    return bench.root / "model"


COMMANDS = {
    "recipe that is not there": (
        "run {root}/none.json",
        "{root}/none.json: cannot be read (No such file or directory). Give the path of a recipe",
    ),
    "recipe that is no JSON": (
        "run {encoder}/model.safetensors",
        "{encoder}/model.safetensors: Recipe refused.",
    ),
    "setting without a value": (
        "run quick {run} --set seed",
        "--set seed: has no value. Write PATH=VALUE",
    ),
    "unknown path": (
        "run quick {run} --set stage.0.lr=1",
        "stage: unknown setting; did you mean stages (of Recipe)?",
    ),
    "data with a recipe": (
        "run {root}/r.json {run} --data {data}",
        "--data: goes with a preset. In a recipe.json the folder is",
    ),
    "resume nothing": (
        "resume {root}/none",
        "{root}/none: is not a run folder (no recipe.json in it).",
    ),
    "resume data": ("resume {data}", "{data}: is not a run folder (no recipe.json in it)."),
    "predict without a model": (
        "predict {data} {data}/images",
        "{data}/config.json: not that of a vitseg model",
    ),
    "predict without images": (
        "predict {root}/model {encoder}",
        "{encoder}: no image found. Known kinds: .bmp",
    ),
    "predict a missing image": (
        "predict {root}/model {root}/no.png --out {root}/out",
        "{root}/no.png: cannot be read as an image",
    ),
}


@pytest.mark.parametrize(("command", "said"), COMMANDS.values(), ids=COMMANDS)
def test_other_commands_refuse_in_one_sentence_too(
    bench: Bench, saved_model: Path, command: str, said: str, capsys
):
    places = {"root": bench.root, "data": bench.data, "encoder": bench.encoder, "run": bench.run}
    assert cli.main(command.format(**places).split()) == 2
    error = capsys.readouterr().err
    assert_one_sentence(error[error.index("vitseg: ") :], [said.format(**places)])
    assert not bench.run.exists()


@pytest.mark.parametrize("broken", ["environment.json", "split.json"])
@pytest.mark.parametrize(
    "how", [remove, halve, lambda path: write(path, b"[]")], ids=["missing", "torn", "a list"]
)
def test_a_run_folder_that_is_not_whole_is_not_resumed_but_refused_by_file(
    bench: Bench, broken: str, how, capsys
):
    events = train(bench.recipe, bench.run)
    next(events)
    events.close()
    how(f"run/{broken}")(bench)
    assert cli.main(["resume", str(bench.run)]) == 2
    error = capsys.readouterr().err
    assert_one_sentence(
        error[error.index("vitseg: ") :], [f"{bench.run / broken}: not a file that vitseg wrote ("]
    )


@pytest.mark.parametrize("broken", ["decoder.safetensors", "config.json", "encoder/config.json"])
@pytest.mark.parametrize("how", [halve, remove], ids=["truncated", "missing"])
def test_a_saved_model_that_is_not_whole_is_refused_by_file(
    bench: Bench, saved_model: Path, broken: str, how, capsys
):
    how(f"model/{broken}")(bench)
    assert cli.main(["predict", str(saved_model), str(bench.data / "images")]) == 2
    assert_one_sentence(
        capsys.readouterr().err,
        [str((saved_model / broken).parent if "encoder" in broken else saved_model / broken)],
    )


@pytest.mark.parametrize(
    "arguments",
    [
        "{data}/images/a.png {data}/masks/a.png --out {root}/out",
        "{data}/images/a.png --out {data}/images/b.png",
    ],
    ids=["two images of one name", "a file for --out"],
)
def test_predict_refuses_to_lose_a_mask(bench: Bench, saved_model: Path, arguments: str):
    assert (
        cli.main(
            [
                "predict",
                str(saved_model),
                *arguments.format(data=bench.data, root=bench.root).split(),
            ]
        )
        == 2
    )
