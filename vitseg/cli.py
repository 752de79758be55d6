"""The command line: run, resume, explain, card, export, predict, check, fetch, recipe, convert,
cache.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Generator
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from vitseg import presets
from vitseg.errors import RunError, VitsegError
from vitseg.events import Event
from vitseg.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from vitseg.runs.folder import RunFolder

PRESETS = {"quick": presets.quick, "giant": presets.giant}


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0; 1 where a check found problems; 2 for anything the user can mend, said in a
    sentence; 130 after Ctrl-C.
    """
    parsed = _parser().parse_args(arguments)
    try:
        if (
            parsed.call in (_run, _resume) and "RANK" in os.environ
        ):  # of torchrun's processes, number 0 does what is asked
            from vitseg.runs.follow import follow_launched

            if (code := follow_launched()) is not None:
                return code
        bad = parsed.call(parsed) is False
    except VitsegError as error:
        sys.stderr.write(f"vitseg: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("vitseg: interrupted\n")
        return 130
    return int(bad)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vitseg", description="Progressive training of ViT segmentation models."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="train a recipe")
    run.add_argument("recipe", help=f"a recipe.json, or a preset: {', '.join(PRESETS)}")
    run.add_argument("folder", nargs="?", help="where to keep the run; a new folder by default")
    run.add_argument("--data", metavar="FOLDER", help="images and masks to train on, with a preset")
    run.add_argument(
        "--set",
        metavar="PATH=VALUE",
        action="append",
        default=[],
        help="change a setting: stages.0.epochs=3",
    )
    run.add_argument(
        "--retrain",
        action="store_true",
        help="also the stages that an earlier run has finished alike",
    )
    run.set_defaults(call=_run)
    resume = commands.add_parser("resume", help="go on with a run that was cut off")
    resume.add_argument("folder")
    resume.add_argument(
        "--inexact",
        action="store_true",
        help="even if data, versions or machine have changed since",
    )
    resume.set_defaults(call=_resume)
    explain = commands.add_parser("explain", help="tell a run in words, from its log")
    explain.add_argument("folder")
    explain.set_defaults(call=_explain)
    card = commands.add_parser(
        "card", help="write a model card into the best/ of a run that has ended"
    )
    card.add_argument("folder")
    card.set_defaults(call=_card)
    export = commands.add_parser(
        "export", help="write a trained model as an ONNX file, held against torch"
    )
    export.add_argument("model", help="a run folder, or its best/")
    export.add_argument("file", help="the .onnx file to write")
    export.set_defaults(call=_export)
    predict = commands.add_parser("predict", help="segment images with a trained model")
    predict.add_argument("model", help="a run folder, or its best/")
    predict.add_argument("images", nargs="+", help="image files, or folders of them")
    predict.add_argument(
        "--out", default="predictions", metavar="FOLDER", help="where masks and overlays go"
    )
    predict.add_argument(
        "--windows",
        action="store_true",
        help="at the images' own resolution, in overlapping windows",
    )
    predict.set_defaults(call=_predict)
    recipe = commands.add_parser("recipe", help="print a preset as JSON")
    recipe.add_argument("preset", choices=PRESETS)
    recipe.add_argument("--data", metavar="FOLDER")
    recipe.set_defaults(
        call=lambda parsed: sys.stdout.write(
            PRESETS[parsed.preset](parsed.data).model_dump_json(indent=2) + "\n"
        )
    )
    check = commands.add_parser(
        "check", help="look at a folder of images and masks: all that is wrong, and what is in it"
    )
    check.add_argument("data", help="a folder, or a recipe.json for its data")
    check.add_argument(
        "--json", metavar="FILE", help="write what was found as JSON; - for standard output"
    )
    check.add_argument("--html", metavar="FILE", help="write a page with pictures")
    check.set_defaults(call=_check)
    fetch = commands.add_parser(
        "fetch", help="a public data set: downloaded, converted and kept; prints its folder"
    )
    fetch.add_argument("name", help="oxford-pets, voc2007 or mni-brain")
    fetch.set_defaults(call=_fetch)
    convert = commands.add_parser(
        "convert", help="take the encoder out of a .pth checkpoint, without running any code in it"
    )
    convert.add_argument("file")
    convert.add_argument("folder", help="where the encoder goes; name it as model.encoder")
    convert.add_argument(
        "--like",
        required=True,
        metavar="ENCODER",
        help="an encoder of the same make, by name or folder",
    )
    convert.set_defaults(call=_convert)
    cache = commands.add_parser(
        "cache", help="what is kept of the frozen blocks: list, verify or clear it"
    )
    cache.add_argument("action", nargs="?", default="list", choices=("list", "verify", "clear"))
    cache.add_argument("of", nargs="?", metavar="ENCODER", help="clear that alone, or masks")
    cache.set_defaults(call=_cache)
    return parser


def _run(parsed: argparse.Namespace) -> None:
    from vitseg.runs.folder import RunFolder, new_run
    from vitseg.runs.forecast import forecast, measure
    from vitseg.runs.run import train
    from vitseg.training.job import Job
    from vitseg.ui import table

    recipe = _recipe(parsed.recipe, parsed.data).replace(dict(_setting(s) for s in parsed.set))
    run = RunFolder(parsed.folder) if parsed.folder else new_run(recipe.name)
    job = Job(recipe)
    events = train(job, run.path, reuse=not parsed.retrain)
    first = next(events)  # the folder is made, and nothing is in the way
    inherited = first.parent["stage"] if first.parent else 0
    ahead = forecast(job, measure(job), inherited)
    notes = table.memory_notes(ahead, job.machine)
    sys.stdout.write("\n".join([str(table.ahead(recipe, ahead)), *notes, "", ""]))
    _finish(events, run, first)


def _resume(parsed: argparse.Namespace) -> None:
    from vitseg.runs.folder import RunFolder
    from vitseg.runs.run import resume

    _finish(resume(parsed.folder, allow_inexact=parsed.inexact), RunFolder(parsed.folder))


def _finish(events: Generator[Event], run: RunFolder, first: Event | None = None) -> None:
    """Train to the end, or until a signal asks for one; then the table, the folder and the
    report.
    """
    from vitseg.files import held_back
    from vitseg.ui import table
    from vitseg.ui.console import progress
    from vitseg.ui.report import report

    try:
        with held_back() as asked, closing(events):  # which saves
            for _ in progress(chain([first] if first else [], events)):
                if asked:
                    break
    except KeyboardInterrupt:
        sys.stderr.write(f"\nGo on with: vitseg resume {run.path}\n")
        raise
    sys.stdout.write(
        f"\n{table.results(run.summary)}\n\nrun folder  {run.path}\nreport      "
        f"{report(run.path)}\n"
    )


def _explain(parsed: argparse.Namespace) -> None:
    from vitseg.runs.narrate import explain

    sys.stdout.write(f"{explain(parsed.folder)}\n")


def _card(parsed: argparse.Namespace) -> None:
    from vitseg.insight.card import write_card

    sys.stdout.write(f"{write_card(parsed.folder)}\n")


def _export(parsed: argparse.Namespace) -> None:
    from vitseg.insight.export import export_onnx
    from vitseg.model.segmenter import load_segmenter

    apart = export_onnx(load_segmenter(parsed.model), parsed.file)
    sys.stdout.write(
        f"{Path(parsed.file).absolute()}: logits differ from torch's by {apart:.1e} at most\n"
    )


def _check(parsed: argparse.Namespace) -> bool:
    from vitseg.ui.data_report import check

    report = check(load_recipe(parsed.data).data if Path(parsed.data).is_file() else parsed.data)
    sys.stdout.write(report.to_json() if parsed.json == "-" else f"{report}\n")
    for file in filter(None, (parsed.json if parsed.json != "-" else None, parsed.html)):
        kept = report.save(file, page=file == parsed.html)
        sys.stderr.write(f"{kept}\n")
    return report.ok


def _fetch(parsed: argparse.Namespace) -> None:
    from vitseg.data.fetch import about, fetch

    folder = fetch(parsed.name)
    if left_out := about(folder)["left_out"]:
        sys.stderr.write(f"{len(left_out)} left out, see about.json: {', '.join(left_out)}\n")
    sys.stdout.write(f"{folder}\n")


def _convert(parsed: argparse.Namespace) -> None:
    from vitseg.model.convert import convert_encoder

    convert_encoder(parsed.file, parsed.like, parsed.folder)
    sys.stdout.write(f"--set model.encoder={Path(parsed.folder).absolute()}\n")


def _cache(parsed: argparse.Namespace) -> None:
    from vitseg.training.cache import default_cache
    from vitseg.ui.table import kept

    cache = default_cache()
    if parsed.action == "clear":
        sys.stdout.write(f"{cache.clear(parsed.of) / 1e9:.2f} GB cleared in {cache.root}\n")
        return
    if parsed.action == "verify":
        whole, bad = cache.verify()
        names = "".join(f"\n  {path}" for path in bad)
        sys.stdout.write(f"{whole:,} rows are whole; {len(bad)} were not, and are dropped{names}\n")
        return
    sys.stdout.write(f"{kept(cache.groups(), cache.limit)}\n{cache.root}\n")


def _predict(parsed: argparse.Namespace) -> None:
    from tqdm import tqdm

    from vitseg.images import open_rgb, overlay, palette_image
    from vitseg.model.segmenter import load_segmenter

    paths, out = _images(parsed.images), Path(parsed.out)
    if out.resolve() in {p.parent.resolve() for p in paths}:
        raise RunError(f"--out {out}: holds the images themselves.", "Choose another folder.")
    model = load_segmenter(parsed.model)
    try:
        (out / "overlays").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{out}: cannot be written ({error.strerror}).", "Choose another --out."
        ) from None
    predicted = model.predict_windows if parsed.windows else model.predict
    for path in tqdm(paths, unit="image"):
        mask = predicted(path)
        palette_image(mask).save(out / f"{path.stem}.png")
        overlay(open_rgb(path), mask).save(out / "overlays" / f"{path.stem}.png")
    names = ", ".join(f"{i} {name}" for i, name in enumerate(model.shape.classes))
    sys.stdout.write(
        f"{len(paths)} mask{'s' * (len(paths) != 1)} and overlays in {out.absolute()}; values: "
        f"{names}\n"
    )


def _images(given: list[str]) -> list[Path]:
    """The image files named, or in the folders named. Raises RunError where two would share a
    mask's name.
    """
    from vitseg.data.folder import SUFFIXES

    paths = [
        p
        for path in map(Path, given)
        for p in (sorted(path.iterdir()) if path.is_dir() else [path])
    ]
    paths = [p for p in paths if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not paths:
        raise RunError(
            f"{', '.join(given)}: no image found.", f"Known kinds: {', '.join(sorted(SUFFIXES))}."
        )
    first: dict[str, Path] = {}
    for path in paths:
        if (other := first.setdefault(path.stem, path)) is not path:
            raise RunError(
                f"{other} and {path}: their masks would share a name.",
                "Predict them into two folders.",
            )
    return paths


def _recipe(name: str, data: str | None) -> Recipe:
    if name in PRESETS:
        return PRESETS[name](data)
    if data is not None:
        raise VitsegError(
            "--data: goes with a preset.", "In a recipe.json the folder is data.source.path."
        )
    if not Path(name).exists():
        raise VitsegError(
            f"{name}: there is no such file, and no such preset.", f"Presets: {', '.join(PRESETS)}."
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
