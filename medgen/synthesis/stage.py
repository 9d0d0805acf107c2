"""The stage of a run that draws its synthetic dataset."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medgen.assembly import from_pretrained
from medgen.data.stills import Stills
from medgen.model import GenerativeModel
from medgen.protocols import Dataset
from medgen.recipe import Recipe
from medgen.synthesis.cascade import with_first_frames
from medgen.synthesis.draw import synthesize
from medgen.synthesis.filters import Filters
from medgen.synthesis.plan import Plan, plan, plan_like
from medgen.types import Progress


def draw_run(
    run: Path,
    out: Path,
    recipe: Recipe,
    *,
    studies: Dataset,
    train: Dataset,
    device: str,
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Draw what the `sample` section of a recipe asks for; again to resume.

    Args:
        run: folder of the trained run.
        out: folder of the dataset.
        recipe: of the run.
        studies: real ones, all three splits, from which filters learn.
        train: those of the training split, as the generator learned them.
        device: where to draw.
        progress: shows how far it is.
        say: told one sentence when something begins.
    """
    if (out / "dataset.json").is_file():
        return
    sections = recipe.sections
    say(f"Drawing {sections['sample']['count']} synthetic studies")
    how = {part: sections[part] for part in ("sampler", "guidance")}
    model = from_pretrained(run, device=device, **how)
    wanted = _plan(model, recipe, train)
    first = recipe.first_frame
    if first is not None:
        frames = _filters(first, Stills(studies, 1), say)
        with progress("drawing first frames") as step:
            wanted = with_first_frames(model, wanted, out, filters=frames, progress=step)
    with progress("drawing") as step:
        drawn = synthesize(
            model, wanted, out, filters=_filters(recipe, studies, say), progress=step
        )
    say(f"Drew {drawn.count} studies, {drawn.rate:.1f} images/s")


def _filters(recipe: Recipe, studies: Dataset, say: Callable[[str], None]) -> Filters | None:
    """What a recipe rejects, learned from real studies."""
    if not recipe.sections["filters"]:
        return None
    say("Fitting the filters")
    return Filters.fitted(recipe.sections, studies)


def _plan(model: GenerativeModel, recipe: Recipe, train: Dataset) -> Plan:
    """What a recipe asks for: findings, or, if it reads more, what training studies hold."""
    settings = recipe.sections["sample"]
    count, seed = settings["count"], settings["seed"]
    if model.conditioner.reads - {"label"}:
        return plan_like(model, train, count=count, seed=seed)
    return plan(model, count=count, labels=settings["labels"], seed=seed)
