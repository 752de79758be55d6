"""What is shown of a model's inside is what hooks and scikit-learn find, and the model is left
bit-equal, in its mode.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from sklearn.decomposition import PCA

import vitseg
from vitseg.errors import ConfigError
from vitseg.images import fitted_size
from vitseg.insight.inside import all_levels, attention, drift, feature_map, grad_cam, pca_colors
from vitseg.model.segmenter import build_segmenter, load_parts
from vitseg.settings import Model

PICTURE = torch.Generator().manual_seed(3)


@pytest.fixture(params=["dinov2", "dinov2_with_registers", "dinov3_vit", "vit"])
def any_model(request, encoders):
    return build_segmenter(
        Model(encoder=encoders[request.param]), ("a", "b", "c"), (42, 56), seed=0
    )


def photo(height: int = 60, width: int = 100):
    from PIL import Image

    coarse = torch.randint(
        0, 256, (8, 12, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8
    )
    return Image.fromarray(coarse.numpy()).resize((width, height), Image.Resampling.BICUBIC)


def state(model):
    modes = {name: module.training for name, module in model.named_modules()}
    wants = {name: (p.requires_grad, p.grad is None) for name, p in model.named_parameters()}
    hooks = sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules())
    return modes, wants, hooks, model.encoder.vit.config._attn_implementation


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("unfrozen", [0, 2])
def test_looking_inside_leaves_the_model_bit_equal_and_in_its_mode(any_model, training, unfrozen):
    model = any_model
    vitseg.set_freeze_depth(model, unfrozen)
    model.train(training)
    before, weights = state(model), {name: t.clone() for name, t in model.state_dict().items()}
    draws = torch.random.get_rng_state()
    attention(model, photo(), 3)
    grad_cam(model, photo(), 1, 2)
    feature_map(model, photo(), 4)
    assert state(model) == before
    assert all(torch.equal(t, weights[name]) for name, t in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), draws)


def test_attention_is_a_share_of_what_the_block_itself_mixes(any_model):
    """The block's own attention module, fast, on the same tokens: its output is the table times the
    values.
    """
    model, block = any_model, 2
    encoder = model.encoder
    tokens = all_levels(model, photo())[block - 1]
    padded = model.padded(model.shape.size)
    table = encoder.attention(tokens, block, padded)
    assert torch.allclose(table.sum(-1), torch.ones(table.shape[:-1]), atol=1e-5)
    caught = {}
    live = encoder.blocks[block - 1].attention

    def keep(module, inputs, outputs):
        caught["out"] = outputs[0]

    def keep_values(module, inputs, outputs):
        caught["values"] = outputs

    projections = [
        m for name, m in live.named_modules() if name.rpartition(".")[2] in {"value", "v_proj"}
    ]
    outer = [
        m for name, m in live.named_modules() if name.rpartition(".")[2] in {"o_proj", "dense"}
    ]
    handles = [live.register_forward_hook(keep), projections[0].register_forward_hook(keep_values)]
    with torch.no_grad():
        encoder.run(tokens, block - 1, block, set(), padded)
        heads = table.shape[1]
        values = caught["values"].unflatten(-1, (heads, -1)).transpose(1, 2)
        mixed = (table @ values).transpose(1, 2).flatten(2)
        mixed = outer[0](mixed) if outer else mixed
    for handle in handles:
        handle.remove()
    assert torch.allclose(mixed, caught["out"], atol=1e-5)


def test_maps_cover_the_patches_that_the_image_reaches(any_model):
    model, image = any_model, photo(60, 100)
    height, width = fitted_size((60, 100), model.shape.size)
    grid = (-(-height // 14), -(-width // 14))
    assert attention(model, image, 1).shape == (2, *grid)
    assert grad_cam(model, image, 0, 1).shape == grid
    assert feature_map(model, image, 4).shape == (32, *grid)


@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
def test_grad_cam_is_what_hooks_on_the_block_find(any_model, level):
    model, image, class_id = any_model, photo(42, 56), 2
    torch.nn.init.normal_(
        model.decoder.direct.weight, std=0.1, generator=torch.Generator().manual_seed(0)
    )
    encoder = model.encoder
    pixels = model.normalise(model.canvas(image))
    tokens = encoder.embed(pixels).detach().requires_grad_()
    kept = {0: tokens}
    for number, block in enumerate(encoder.blocks, start=1):
        block.register_forward_hook(lambda m, i, out, number=number: kept.update({number: out}))
    levels = encoder.run(tokens, 0, 4, {1, 2, 3, 4}, (42, 56))
    logits = model.decoder(
        [encoder.to_map(levels[d], (42, 56)) for d in model.shape.skip_depths], (42, 56)
    )
    where = logits.argmax(1)[0] == class_id
    where = where if where.any() else torch.ones_like(where)
    activation = kept[level]
    for block in encoder.blocks:
        block._forward_hooks.clear()
    (gradient,) = torch.autograd.grad(logits[0, class_id][where].sum(), activation)
    first = encoder.prefix_tokens
    cam = (
        (activation[0, first:] * gradient[0, first:].mean(0)).sum(-1).relu().detach().reshape(3, 4)
    )
    cam = cam / cam.max().clamp(min=1e-12)
    assert cam.max() > 0
    assert torch.allclose(grad_cam(model, image, class_id, level), cam, atol=1e-4)


@pytest.mark.parametrize(
    ("look", "says"),
    [
        (lambda m: attention(m, photo(), 0), "block: got 0; allowed: 1..4"),
        (lambda m: attention(m, photo(), 5), "block: got 5; allowed: 1..4"),
        (lambda m: grad_cam(m, photo(), 3, 1), "class_id: got 3; allowed: 0..2"),
        (lambda m: grad_cam(m, photo(), 0, 5), "level: got 5; allowed: 0..4"),
        (lambda m: feature_map(m, photo(), -1), "level: got -1; allowed: 0..4"),
    ],
)
def test_a_place_that_is_not_there_is_named(encoders, look, says):
    model = build_segmenter(Model(encoder=encoders["vit"]), ("a", "b", "c"), (42, 56), seed=0)
    with pytest.raises(ConfigError, match=says):
        look(model)


def test_colours_are_the_three_main_directions_of_all_maps_together():
    given = torch.Generator().manual_seed(0)
    mixing = (
        torch.diag(torch.tensor([9.0, 6.0, 3.0, 0.2, 0.1]))
        @ torch.linalg.qr(torch.randn(5, 5, generator=given)).Q
    )
    maps = [(torch.randn(4 * w, 5, generator=given) @ mixing).T.reshape(5, 4, w) for w in (30, 20)]
    first, second = pca_colors(maps)
    assert first.shape == (4, 30, 3)
    assert second.shape == (4, 20, 3)
    rows = torch.cat([m.flatten(1).T for m in maps]).numpy()
    expected = torch.from_numpy(PCA(3).fit_transform(rows))
    found = torch.cat([first.flatten(0, 1), second.flatten(0, 1)]).double()
    inner = ((found > 0) & (found < 1)).all(1)
    for i in range(3):
        together = torch.corrcoef(torch.stack([found[inner, i], expected[inner, i]]))[0, 1]
        assert abs(together) == pytest.approx(1, abs=1e-6)


def test_drift_is_zero_where_a_stage_froze_and_by_hand_where_it_trained(run, tmp_path):
    folder = vitseg.RunFolder(shutil.copytree(run, tmp_path / "run"))
    for stage in (1, 2, 3):  # as if no epoch had been better than the last one
        shutil.rmtree(folder.stage(stage) / "best")
        shutil.copytree(folder.stage(stage) / "last", folder.stage(stage) / "best")
    moved, depths = drift(folder.path), [s.unfrozen_blocks for s in folder.recipe.stages]
    for stage in (1, 2, 3):
        deepest = max(depths[:stage])
        still = {part for part, way in moved[stage].items() if way == 0}
        assert still == {"embeddings", *(f"block {i}" for i in range(1, 5 - deepest))} | (
            {"final norm"} if not deepest else set()
        )
    names = [
        n
        for n in load_parts(folder.stage(3) / "last")
        if n.startswith("encoder.vit.") and "layer.3." in n
    ]
    pretrained = build_segmenter(
        folder.recipe.model, ("a", "b", "c"), (70, 70), seed=0
    ).state_dict()
    now = load_parts(folder.stage(3) / "last")
    before, after = (
        torch.cat([weights[n].flatten() for n in names]).double() for weights in (pretrained, now)
    )
    assert moved[3]["block 4"] == pytest.approx(
        float((after - before).norm() / before.norm()), rel=1e-6
    )
    assert "decoder" not in moved[1]
