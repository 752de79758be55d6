"""200 random presses in a real kernel: the state is always a legal one, and there are never two
trainers.
"""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_200_random_actions_never_make_two_trainers_or_a_state_that_is_none(
    kernel, say, tiny_recipe, tmp_path
):
    _, client = kernel
    tiny_recipe.save(tmp_path / "recipe.json")
    say(
        client,
        (
            f"import sys; sys.path.insert(0, {str(TESTS)!r}); import vitseg; from "
            f"kernel.random_actions import act"
        ),
    )
    seen = say(
        client,
        f"print(*act(vitseg.load_recipe({str(tmp_path / 'recipe.json')!r}), 200, seed=0))",
        timeout=200,
    ).split()
    assert {"running", "stopped"} <= set(seen)


def test_a_button_that_is_broken_is_noticed(kernel, say, tiny_recipe, tmp_path):
    _, client = kernel
    tiny_recipe.save(tmp_path / "recipe.json")
    broken = (
        f"import sys; sys.path.insert(0, {str(TESTS)!r}); import vitseg; from "
        f"kernel.random_actions import act\n"
        "from vitseg.ui.session import Session\n"
        "Session.start = lambda self: 1 / 0\n"
        f"try:\n    act(vitseg.load_recipe({str(tmp_path / 'recipe.json')!r}), 200, seed=0)\n"
        "except AssertionError as error:\n    print(error)"
    )
    assert "should not happen" in say(client, broken, timeout=200)
