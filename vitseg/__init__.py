"""vitseg: a Jupyter-first workbench for progressive training of Vision-Transformer segmentation
models.
"""

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "vitseg.recipe": ("Recipe", "load_recipe"),
    "vitseg.effects": (
        "Blur",
        "Clahe",
        "CoarseDropout",
        "Crop",
        "Elastic",
        "GridDistortion",
        "Hue",
        "OpticalDistortion",
        "RightAngle",
    ),
    "vitseg.settings": (
        "AdamW",
        "Augment",
        "ByFrequency",
        "Classes",
        "Constant",
        "CosineRestarts",
        "Data",
        "Exponential",
        "Folder",
        "Generated",
        "Loss",
        "Merge",
        "Model",
        "SGD",
        "Stage",
        "WarmupPoly",
    ),
    "vitseg.origin": ("from_training_config",),
    "vitseg.presets": ("giant", "quick", "whole_encoder"),
    "vitseg.plan": ("planned_lr", "preview"),
    "vitseg.errors": ("VitsegError", "FreezeBreach", "LRBreach"),
    "vitseg.data.dataset": ("SegmentationData",),
    "vitseg.data.fetch": ("fetch",),
    "vitseg.model.segmenter": ("Segmenter", "build_segmenter", "load"),
    "vitseg.model.freeze": ("set_freeze_depth", "freeze_report"),
    "vitseg.training.audit": ("LRContract", "audit"),
    "vitseg.training.job": ("Job",),
    "vitseg.training.loop": ("StageTraining",),
    "vitseg.training.ema": ("Ema",),
    "vitseg.runs.folder": ("RunFolder", "new_run", "replay", "runs_root"),
    "vitseg.runs.run": ("fork", "resume", "train"),
    "vitseg.runs.mirror": ("mirror",),
    "vitseg.runs.narrate": ("explain",),
    "vitseg.insight.card": ("write_card",),
    "vitseg.insight.export": ("export_onnx",),
    "vitseg.insight.inside": (
        "attention",
        "drift",
        "feature_map",
        "grad_cam",
        "pca_colors",
        "spread",
    ),
    "vitseg.insight.reading": ("flipped", "probabilities", "read"),
    "vitseg.ui.ablation": ("ablate",),
    "vitseg.ui.console": ("progress", "watch"),
    "vitseg.ui.data_report": ("check",),
    "vitseg.ui.gallery": ("gallery", "show_confusions", "show_views"),
    "vitseg.ui.pictures": ("contact_sheet",),
    "vitseg.ui.report": ("report",),
    "vitseg.ui.search": ("search",),
    "vitseg.ui.workbench": ("Workbench",),
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_WHERE)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Public names are imported when first used, so that reading a log needs no torch (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'vitseg' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
