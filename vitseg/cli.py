"""The command line: run, resume, explain, card, export, predict, check, fetch, recipe, convert,
cache.
"""

import argparse
import json
import os
import sys
from argparse import Namespace
from collections.abc import Generator
from contextlib import closing
from itertools import chain
from pathlib import Path

import vitseg
from vitseg import presets
from vitseg.errors import RunError, VitsegError
from vitseg.events import Event
from vitseg.files import held_back, written
from vitseg.recipe import Recipe, load_recipe
from vitseg.ui import table

PRESETS = {"quick": presets.quick, "giant": presets.giant}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 where a check found problems; 2 for anything the user can mend, said in a
    sentence; 130 after Ctrl-C.
    """
    parsed = _parser().parse_args(arguments)
    try:
        if parsed.call in (_run, _resume) and "RANK" in os.environ:
            from vitseg.runs.follow import follow, train_along

            code = follow(train_along)  # of torchrun's processes, number 0 does what is asked
            if code is not None:
                return code
        return parsed.call(parsed) or 0
    except VitsegError as error:
        _note(f"vitseg: {error}")
        return 2
    except KeyboardInterrupt:
        _note("vitseg: interrupted")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitseg", description="Progressive training of ViT segmentation models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (call, says, arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=says)
        command.set_defaults(call=call)
        for argument, options in arguments.items():
            if isinstance(options, str):
                options = {"help": options}
            command.add_argument(argument, **options)
    return parser


def _say(text: object) -> None:
    sys.stdout.write(f"{text}\n")


def _note(text: object) -> None:
    sys.stderr.write(f"{text}\n")


def _run(parsed: Namespace) -> None:
    from vitseg.runs.forecast import forecast, measure

    recipe = _recipe(parsed.recipe, parsed.data).replace(dict(map(_setting, parsed.set)))
    run = vitseg.RunFolder(parsed.folder) if parsed.folder else vitseg.new_run(recipe.name)
    job = vitseg.Job(recipe)
    events = vitseg.train(job, run.path, reuse=not parsed.retrain)
    first = next(events)  # the folder is made, and nothing is in the way
    inherited = first.parent["stage"] if first.parent else 0
    ahead = forecast(job, measure(job), inherited)
    notes = table.memory_notes(ahead, job.machine)
    _say("\n".join([str(table.stages(recipe, (), ahead)), *notes, ""]))
    _finish(events, run, first)


def _resume(parsed: Namespace) -> None:
    events = vitseg.resume(parsed.folder, allow_inexact=parsed.inexact)
    _finish(events, vitseg.RunFolder(parsed.folder))


def _finish(events: Generator[Event], run: vitseg.RunFolder, *before: Event) -> None:
    """Train to the end, or until a signal asks for one; then the table, the folder and the
    report.
    """
    try:
        with held_back() as asked, closing(events):  # which saves
            for _ in vitseg.progress(chain(before, events)):
                if asked:
                    break
    except KeyboardInterrupt:
        _note(f"\nGo on with: vitseg resume {run.path}")
        raise
    _say(f"\n{table.results(run.summary)}\n\nrun folder  {run.path}")
    _say(f"report      {vitseg.report(run.path)}")


def _recipe(name: str, data: str | None) -> Recipe:
    if name in PRESETS:
        return PRESETS[name](data)
    if data is not None:
        raise VitsegError(
            "--data: goes with a preset.", "In a recipe.json the folder is data.source.path."
        )
    return load_recipe(name)


def _setting(text: str) -> tuple[str, object]:
    path, equals, value = text.partition("=")
    if not equals:
        raise VitsegError(
            f"--set {text}: has no value.", "Write PATH=VALUE, as in --set stages.0.epochs=3."
        )
    try:
        return path, json.loads(value)
    except ValueError:
        return path, value


def _export(parsed: Namespace) -> None:
    apart = vitseg.export_onnx(vitseg.load(parsed.model), parsed.file)
    _say(f"{Path(parsed.file).absolute()}: logits differ from torch's by {apart:.1e} at most")


def _check(parsed: Namespace) -> int:
    data = parsed.data
    if Path(data).is_file():
        data = load_recipe(data).data
    report = vitseg.check(data)
    if parsed.json == "-":
        sys.stdout.write(report.to_json())
    else:
        _say(report)
        if parsed.json:
            _note(report.save(parsed.json, page=False))
    if parsed.html:
        _note(report.save(parsed.html))
    return int(not report.ok)


def _fetch(parsed: Namespace) -> None:
    folder = vitseg.fetch(parsed.name)
    left_out = json.loads((folder / "about.json").read_text(encoding="utf-8"))["left_out"]
    if left_out:
        _note(f"{len(left_out)} left out, see about.json: {', '.join(left_out)}")
    _say(folder)


def _convert(parsed: Namespace) -> None:
    from vitseg.model.weights import convert_encoder

    convert_encoder(parsed.file, parsed.like, parsed.folder)
    _say(f"--set model.encoder={Path(parsed.folder).absolute()}")


def _cache(parsed: Namespace) -> None:
    from vitseg.training.cache import default_cache

    cache = default_cache()
    match parsed.action:
        case "clear":
            _say(f"{cache.clear(parsed.of) / 1e9:.2f} GB cleared in {cache.root}")
        case "verify":
            bad = cache.verify()
            _say(f"{len(bad)} rows were not whole, and are dropped")
            for path in bad:
                _say(f"  {path}")
        case _:
            _say(f"{table.kept(cache)}\n{cache.root}")


def _predict(parsed: Namespace) -> None:
    from tqdm import tqdm

    from vitseg.images import open_rgb, overlay, palette_image

    paths, out = _images(parsed.images), Path(parsed.out)
    if out.resolve() in {path.parent.resolve() for path in paths}:
        raise RunError(f"--out {out}: holds the images themselves.", "Choose another folder.")
    model = vitseg.load(parsed.model)
    with written(out):
        (out / "overlays").mkdir(parents=True, exist_ok=True)
    predict = model.predict_windows if parsed.windows else model.predict
    for path in tqdm(paths, unit="image"):
        mask, name = predict(path), f"{path.stem}.png"
        palette_image(mask).save(out / name)
        overlay(open_rgb(path), mask).save(out / "overlays" / name)
    names = ", ".join(f"{i} {name}" for i, name in enumerate(model.shape.classes))
    _say(f"Masks and overlays: {len(paths)} each in {out.absolute()}; values: {names}")


def _images(given: list[str]) -> list[Path]:
    """The image files named, or in the folders named. Raises RunError where two would share a
    mask's name.
    """
    from vitseg.data.folder import SUFFIXES

    first: dict[str, Path] = {}
    for name in given:
        folder = Path(name)
        for path in sorted(folder.iterdir()) if folder.is_dir() else [folder]:
            is_image = path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
            if is_image and (other := first.setdefault(path.stem, path)) is not path:
                raise RunError(
                    f"{other} and {path}: their masks would share a name.",
                    "Predict them into two folders.",
                )
    if not first:
        kinds = ", ".join(sorted(SUFFIXES))
        raise RunError(f"{', '.join(given)}: no image found.", f"Known kinds: {kinds}.")
    return list(first.values())


_MODEL = "a run folder, or its best/"

COMMANDS = {
    "run": (
        _run,
        "train a recipe",
        {
            "recipe": f"a recipe.json, or a preset: {', '.join(PRESETS)}",
            "folder": {"nargs": "?", "help": "where to keep the run; a new folder by default"},
            "--data": "a folder of images and masks to train on, with a preset",
            "--set": {
                "metavar": "PATH=VALUE",
                "action": "append",
                "default": [],
                "help": "change a setting: stages.0.epochs=3",
            },
            "--retrain": {
                "action": "store_true",
                "help": "also the stages that an earlier run has finished alike",
            },
        },
    ),
    "resume": (
        _resume,
        "go on with a run that was cut off",
        {
            "folder": "",
            "--inexact": {
                "action": "store_true",
                "help": "even if data, versions or machine have changed since",
            },
        },
    ),
    "explain": (
        lambda parsed: _say(vitseg.explain(parsed.folder)),
        "tell a run in words, from its log",
        {"folder": ""},
    ),
    "card": (
        lambda parsed: _say(vitseg.write_card(parsed.folder)),
        "write a model card into the best/ of a run that has ended",
        {"folder": ""},
    ),
    "export": (
        _export,
        "write a trained model as an ONNX file, held against torch",
        {"model": _MODEL, "file": "the .onnx file to write"},
    ),
    "predict": (
        _predict,
        "segment images with a trained model",
        {
            "model": _MODEL,
            "images": {"nargs": "+", "help": "image files, or folders of them"},
            "--out": {"default": "predictions", "help": "the folder for masks and overlays"},
            "--windows": {
                "action": "store_true",
                "help": "at the images' own resolution, in overlapping windows",
            },
        },
    ),
    "recipe": (
        lambda parsed: _say(PRESETS[parsed.preset](parsed.data).model_dump_json(indent=2)),
        "print a preset as JSON",
        {"preset": {"choices": PRESETS}, "--data": "a folder of images and masks"},
    ),
    "check": (
        _check,
        "look at a folder of images and masks: all that is wrong, and what is in it",
        {
            "data": "a folder, or a recipe.json for its data",
            "--json": "a file for what was found, as JSON; - for standard output",
            "--html": "a file for a page with pictures",
        },
    ),
    "fetch": (
        _fetch,
        "a public data set: downloaded, converted and kept; prints its folder",
        {"name": "oxford-pets, voc2007 or mni-brain"},
    ),
    "convert": (
        _convert,
        "take the encoder out of a .pth checkpoint, without running any code in it",
        {
            "file": "",
            "folder": "where the encoder goes; name it as model.encoder",
            "--like": {"required": True, "help": "an encoder of the same make, by name or folder"},
        },
    ),
    "cache": (
        _cache,
        "what is kept of the frozen blocks: list, verify or clear it",
        {
            "action": {"nargs": "?", "default": "list", "choices": ("list", "verify", "clear")},
            "of": {"nargs": "?", "help": "the encoder to clear alone, or masks"},
        },
    ),
}
"""By name: what a command calls, what it does, and its arguments: their help, or all options of
argparse.
"""
