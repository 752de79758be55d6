"""vitseg: a Jupyter-first workbench for progressive training of Vision-Transformer segmentation
models.
"""

from importlib import import_module

__version__ = "0.1.0"

_TOGETHER = {
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
    "vitseg.presets": ("giant", "quick", "whole_encoder"),
    "vitseg.plan": ("planned_lr", "preview"),
    "vitseg.errors": ("VitsegError", "FreezeBreach", "LRBreach"),
    "vitseg.model.segmenter": ("Segmenter", "build_segmenter", "load"),
    "vitseg.model.freeze": ("set_freeze_depth", "freeze_report"),
    "vitseg.training.audit": ("LRContract", "audit"),
    "vitseg.runs.folder": ("RunFolder", "new_run", "replay", "runs_root"),
    "vitseg.runs.run": ("fork", "resume", "train"),
    "vitseg.insight.inside": (
        "attention",
        "drift",
        "feature_map",
        "grad_cam",
        "pca_colors",
        "spread",
    ),
    "vitseg.insight.reading": ("flipped", "probabilities", "read"),
    "vitseg.ui.console": ("progress", "watch"),
    "vitseg.ui.gallery": ("gallery", "show_confusions", "show_views"),
}
_WHERE = {
    "from_training_config": "vitseg.origin",
    "SegmentationData": "vitseg.data.dataset",
    "fetch": "vitseg.data.fetch",
    "Job": "vitseg.training.job",
    "StageTraining": "vitseg.training.loop",
    "Ema": "vitseg.training.ema",
    "mirror": "vitseg.runs.mirror",
    "explain": "vitseg.runs.narrate",
    "write_card": "vitseg.insight.card",
    "export_onnx": "vitseg.insight.export",
    "ablate": "vitseg.ui.ablation",
    "check": "vitseg.ui.data_report",
    "contact_sheet": "vitseg.ui.pictures",
    "report": "vitseg.ui.report",
    "search": "vitseg.ui.search",
    "Workbench": "vitseg.ui.workbench",
} | {name: module for module, names in _TOGETHER.items() for name in names}
"""Where each public name is."""

__all__ = sorted(_WHERE)  # noqa: PLE0605


def __getattr__(name: str) -> object:
    """Public names are imported when first used, so that reading a log needs no torch (PEP 562)."""
    if name not in _WHERE:
        raise AttributeError(f"module 'vitseg' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_WHERE]
