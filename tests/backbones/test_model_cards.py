"""The page on the bundled weights says what their cards say."""

from pathlib import Path

import pytest

from sea_peft.backbones.weights import BUNDLED, load_pretrained

PAGE = Path(__file__).parents[2] / "docs" / "model-cards.md"


@pytest.mark.parametrize("name", sorted(path.stem for path in BUNDLED.glob("*.json")))
def test_a_row_of_the_page_agrees_with_the_card(name: str):
    weights = load_pretrained(name)
    card = weights.card
    (row,) = (
        line
        for line in PAGE.read_text(encoding="utf-8").splitlines()
        if line.startswith(f"| `{name}`")
    )
    facts = (
        f"{weights.parameters:,}",
        f"{len(card.labels) - 1} of",
        f"{card.recipe.spacing[0]:g} mm",
        f"{card.dice['mean']:.3f}",
    )
    cells = row.split(" | ")
    assert all(any(cell.startswith(fact) for cell in cells) for fact in facts)
