"""The model card: a version's description in the registry, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from mdpr.artifacts import SHOT_GROUPS, ModelConfig

BRANCHES = ("zero_shot", "base", "routed", "fused")
GROUPS = ("all", *SHOT_GROUPS)
GATE_HEADING = "\n## Gate\n\n"
NOT_JUDGED = "Not judged yet."


def model_card(config: ModelConfig, metrics: Mapping[str, Mapping[str, float]], test_images: int) -> str:
    """Results, data and settings of a model, with a place for the gate's words at the end.

    `metrics` maps a branch to its accuracies (fractions) by group, as in metrics.json.
    """
    smallest, largest = min(config.train_images), max(config.train_images)
    tune, classes = config.tune, len(config.class_names)
    settings = {
        "Backbone": config.fingerprint,
        "Prompts": f"{tune.prompting}, {tune.context_tokens} tokens, depth {tune.prompt_depth}",
        "Router": f"{tune.router_heads} heads" if tune.routing else "off",
        "Base loss": tune.base_loss,
        "Epoch chosen on validation": f"{config.selected_epoch} of {tune.epochs}",
        "Training images": f"{sum(config.train_images)} in {classes} classes, {smallest} to {largest} each",
        "Test images": str(test_images),
    }
    rows = [
        (branch, *(_points(metrics[branch].get(group)) for group in GROUPS)) for branch in BRANCHES if branch in metrics
    ]
    parts = [
        "## Results\n",
        "Class-balanced accuracy on the test images, percent.\n",
        _table(("branch", *GROUPS), rows),
        "\n## Data and settings\n",
        _table(("", ""), list(settings.items())),
    ]
    return with_gate("\n".join(parts), NOT_JUDGED)


def with_gate(card: str, words: str) -> str:
    """`card` with its last section, the gate's, saying `words`."""
    return card.partition(GATE_HEADING)[0] + GATE_HEADING + words + "\n"


def gate_of(card: str) -> str:
    """What the gate has said on `card`."""
    return card.partition(GATE_HEADING)[2].strip() or NOT_JUDGED


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [header, tuple("---" for _ in header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def _points(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"
