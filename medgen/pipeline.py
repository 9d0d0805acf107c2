"""One recipe in one folder: codec, generator, synthetic dataset, evaluation, proof, report.

Every stage leaves its result on disk, whole or not at all, and is left out when the result is
there: the same command again resumes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from medgen.assembly import (
    build_codec,
    build_dataset,
    build_model,
    checkpoint_metadata,
    load_codec,
    start_codec_from,
    start_from,
    taught,
    train_settings,
)
from medgen.checkpoint import (
    FIRST_FRAME,
    RECIPE,
    WEAK,
    WEIGHTS,
    content_digest,
    find_checkpoint,
    read_metadata,
)
from medgen.data.latents import cached_latents
from medgen.data.splits import Subset, by_split, check_leakage, load
from medgen.data.stills import Stills
from medgen.disk import write_bytes
from medgen.errors import DataError, OutputError, RecipeError
from medgen.evidence import SYNTHETIC, check_proof, evaluate_run, prove_run, report_run
from medgen.model import GenerativeModel
from medgen.protocols import Codec, Dataset, LearnedCodec
from medgen.recipe import Recipe, digest
from medgen.rng import derive
from medgen.samplers.guidance import NoGuidance
from medgen.synthesis.plan import describe, plan_like
from medgen.training.learner import TrainingData
from medgen.types import Batch, Progress, Schema

logger = logging.getLogger(__name__)


@contextmanager
def silent(title: str) -> Iterator[Callable[[int, int], None]]:
    """Progress that nobody sees."""
    yield lambda done, total: None


class Run:
    """A recipe, the folder that its run leaves everything in, and the stages between.

    Args:
        recipe: checked.
        out: the run's folder.
        data_root: where data lives on this machine; None means MEDGEN_DATA.
        device: "auto", "cpu", "cuda", "mps".
        progress: shows how far a stage is.
        say: told one sentence when a stage begins.

    Raises:
        OutputError: the folder holds a run of another recipe, or something else.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        data_root: Path | None = None,
        device: str = "auto",
        progress: Progress = silent,
        say: Callable[[str], None] = logger.info,
    ) -> None:
        from medgen.training.common import resolve_device

        self.recipe = recipe
        self.out = out
        self.data_root = data_root
        self.device = resolve_device(device)
        self.progress = progress
        self.say = say

    @property
    def shows_progress(self) -> bool:
        """Whether somebody watches."""
        return self.progress is not silent

    @cached_property
    def studies(self) -> Dataset:
        """The dataset of the recipe; splits are by patient."""
        dataset = build_dataset(self.recipe.sections["data"], self.data_root)
        check_leakage(dataset.studies)
        return dataset

    @cached_property
    def taught(self) -> Dataset:
        """The dataset as a generator learns it."""
        return taught(self.studies, self.recipe.sections["data"])

    def split(self, name: str) -> Subset:
        """The studies of a split as a generator learns them; there must be some."""
        part = by_split(self.taught, name)
        if not len(part):
            raise DataError(f"no study is in split '{name}'; medgen needs all three splits")
        return part

    def describe(self) -> str:
        """What a run would do, without doing it."""
        counts = {name: len(self.split(name)) for name in ("train", "validation", "test")}
        schema = self.taught.schema
        lines = [
            f"recipe    {self.recipe.name} ({self.recipe.digest[:19]})",
            f"studies   {', '.join(f'{count} {name}' for name, count in counts.items())}",
            f"schema    {schema.channels} x {' x '.join(map(str, schema.size))}, "
            f"findings: {', '.join(schema.findings) or 'none'}",
            f"device    {self.device}",
            f"out       {self.out}",
        ]
        if self.recipe.kind == "generator":
            model = build_model(self.recipe.sections, schema, self._fresh_codec())
            weights = sum(p.numel() for p in model.backbone.parameters())
            lines.insert(3, f"backbone  {weights / 1e6:.1f} M parameters, {model.codec.latent}")
        return "\n".join(lines)

    def train(self) -> Path:
        """Train what the recipe trains; returns the run's folder."""
        self._claim()
        if self.recipe.kind == "codec":
            self._train_codec(self.out)
        else:
            self._train_generator()
        return self.out

    def run(self) -> Path:
        """Every stage; returns the report, or a codec's folder."""
        if self.recipe.kind == "generator":
            check_proof(self.recipe.sections["prove"], self.studies.schema)
        self.train()
        if self.recipe.kind == "codec":
            return self.out
        self.synthesize()
        self.say("Evaluating")
        evaluate_run(self.out, self.studies, self.recipe.sections["evaluate"], self.progress)
        self.say("Proving")
        prove_run(self.out, self.studies, self.recipe.sections["prove"], self.progress)
        return report_run(self.out, self.recipe, self.studies)

    def synthesize(self) -> Path:
        """Draw the dataset of the recipe's `sample` section into `synthetic/`."""
        from medgen.synthesis.stage import draw_run

        draw_run(
            self.out,
            self.out / SYNTHETIC,
            self.recipe,
            studies=self.studies,
            train=self.split("train"),
            device=self.device,
            progress=self.progress,
            say=self.say,
        )
        return self.out / SYNTHETIC

    def _claim(self) -> None:
        held = self.out / RECIPE
        if held.is_file():
            from medgen.recipe import load_recipe

            other = load_recipe(held)
            if other.digest != self.recipe.digest:
                raise OutputError(
                    f"{self.out}: holds a run of another recipe or of other settings "
                    f"('{other.name}'); choose another folder with --out, or compare them: "
                    f"medgen recipes diff {held} {self.recipe.name}"
                )
            return
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise OutputError(f"{self.out}: is not empty and holds no run; choose another --out")
        write_bytes(held, self.recipe.to_yaml().encode())

    def _fresh_codec(self) -> Codec:
        with _seeded(self.recipe, "codec"):
            return build_codec(self.recipe.sections["codec"], self.taught.schema)

    def _train_codec(self, folder: Path) -> Codec:
        """The trained codec of the recipe, from `folder` if it was trained before."""
        if (folder / WEIGHTS).is_file():
            return load_codec(folder)
        from medgen.codecs.losses import CodecLosses
        from medgen.training.codec import train_codec

        section = self.recipe.sections["codec"]
        if "train" not in section:
            raise DataError(f"{self.recipe.name}: its codec has nothing to train")
        self.say(f"Training the codec ({section['train']['images']} images)")
        codec = self._fresh_codec()
        if not isinstance(codec, LearnedCodec):
            raise RecipeError(f"codec '{section['type']}' has no weights to train; remove `train`")
        settings = train_settings(section["train"])
        start = start_codec_from(codec, settings.init_from, self.say) if settings.init_from else ""
        result = train_codec(
            codec,
            self.split("train"),
            self.split("validation"),
            settings,
            folder,
            losses=CodecLosses(**section.get("losses", {})),
            metadata=checkpoint_metadata("codec", self.recipe, self.taught.schema, {}),
            identity=digest({key: self.recipe.sections[key] for key in ("data", "codec")}) + start,
            device=self.device,
            progress=self.shows_progress,
        )
        for problem in result.health.problems:
            self.say(f"No generator may train on this codec: {problem}")
        return codec.cpu().eval()

    def _codec(self) -> Codec:
        """The recipe's codec, ready to train a generator on."""
        from medgen.training.codec import codec_health, fit_codec

        section, validation = self.recipe.sections["codec"], self.split("validation")
        if "checkpoint" in section:
            codec = load_codec(section["checkpoint"])
            whitening = getattr(codec, "whitening", None)
            if whitening is not None and not whitening.fitted:  # imported without a scale
                fit_codec(codec, self.split("train"))
        elif "train" in section:
            codec = self._train_codec(self.out / "codec")
        else:
            codec = self._fresh_codec()
            fit_codec(codec, self.split("train"))
        codec_health(codec, validation).require()
        return codec

    def _train_generator(self) -> None:
        if (self.out / WEIGHTS).is_file():
            return
        if "generator" in self.recipe.sections:
            self._take_generator(find_checkpoint(self.recipe.sections["generator"]["checkpoint"]))
            return
        first = self.recipe.first_frame
        if first is not None:
            self._train_first_frame(first)
        self.say("Reading studies")
        codec = self._codec()
        data = (
            self._encoded(self.split("train"), codec),
            self._encoded(self.split("validation"), codec),
        )
        weak = self.recipe.weak
        if weak is not None:
            self.say("Training the weak model")
            self._train_network(weak, self.out / "weak", codec, data)
            write_bytes(self.out / WEAK, (self.out / "weak" / WEIGHTS).read_bytes())
        self.say("Training the generator")
        self._train_network(self.recipe, self.out, codec, data, early=weak is None)

    def _train_first_frame(self, recipe: Recipe) -> None:
        """Train the generator of first frames in a folder of its own, and take its weights."""
        self.say("Training the generator of first frames")
        job = Run(
            recipe,
            self.out / "first_frame",
            device=self.device,
            progress=self.progress,
            say=self.say,
        )
        job.studies = Stills(self.studies, 1)
        write_bytes(self.out / FIRST_FRAME, (job.train() / WEIGHTS).read_bytes())

    def _take_generator(self, checkpoint: Path) -> None:
        """Take a trained generator's weights into the run's folder.

        Raises:
            DataError: it was trained on studies that hold something else.
        """
        metadata = read_metadata(checkpoint)
        schema = Schema.from_dict(json.loads(metadata["schema"]))
        if schema != self.taught.schema:
            raise DataError(
                f"{checkpoint}: was trained on studies of another schema: {schema}, these are "
                f"{self.taught.schema}; choose the same `data`, or train a generator on these"
            )
        self.say(f"Taking the generator of {checkpoint}")
        saw, train = json.loads(metadata["statistics"]), self.split("train")
        if saw["studies"] != len(train):
            self.say(
                f"It was trained on {saw['studies']} studies, these splits train on {len(train)}: "
                "if patients of the test split were among them, the evidence is worthless"
            )
        for name in (WEAK, FIRST_FRAME, WEIGHTS):
            if (checkpoint / name).is_file():
                write_bytes(self.out / name, (checkpoint / name).read_bytes())

    def _train_network(
        self,
        recipe: Recipe,
        folder: Path,
        codec: Codec,
        data: tuple[TrainingData, TrainingData],
        *,
        early: bool = False,
    ) -> None:
        """Train the conditioner and the backbone of a recipe into a folder."""
        from medgen.training.generator import train_generator

        if (folder / WEIGHTS).is_file():
            return
        with _seeded(recipe, "generator"):
            model = build_model(recipe.sections, self.taught.schema, codec)
        if model.guided_by_weak:  # there may be none yet: previews go unguided
            model.guidance = NoGuidance()
        model.conditioner.fit(data[0].conditions)
        settings = train_settings(recipe.sections["train"])
        start = ""
        if settings.init_from:
            start = start_from(model, settings.init_from, self.say, freeze=settings.freeze)
        statistics = describe(self.split("train"), data[0].conditions)
        result = train_generator(
            model,
            *data,
            settings,
            folder,
            metadata=checkpoint_metadata(
                "generator", recipe, self.taught.schema, statistics, start=start
            ),
            identity=recipe.digest + start,
            preview=partial(_preview, self.split("validation"), folder / "samples"),
            device=self.device,
            early=early,
            progress=self.shows_progress,
        )
        if result.stopped:
            self.say(
                f"Memorization began: stopped after {result.images} images; the weights after "
                f"{result.kept} images, of the lowest held-out loss, are kept"
            )

    def _encoded(self, part: Subset, codec: Codec) -> TrainingData:
        """Latents and conditions of a split; latents come from the cache if they are there."""
        flip = self.recipe.sections["train"]["flip"]
        settings: dict[str, Any] = {
            "digest": digest([self.recipe.sections["codec"], content_digest(codec.state_dict())]),
            "cache_dir": self.out / "latents",
            "device": self.device,
        }
        latents = cached_latents(part, codec, **settings)
        flipped = cached_latents(part, codec, flip=True, **settings) if flip else None
        parts = self.recipe.sections["conditioner"].values()
        memory = max((each["frames"] for each in parts if each["type"] == "memory"), default=0)
        return TrainingData(latents, conditions_of(part, memory=memory), flipped)


def _preview(like: Subset, folder: Path, model: GenerativeModel, images: int) -> None:
    """Samples from fixed seeds and conditions, after `images` images of training."""
    from medgen.report.pictures import contact_sheet

    asked = plan_like(model, like, count=model.micro_batch)
    drawn = model.sample(asked.conditions, list(asked.seeds))
    assert drawn.image is not None
    contact_sheet(drawn.image, path=folder / f"{images:09d}.png", time=model.schema.time)


@contextmanager
def _seeded(recipe: Recipe, part: str) -> Iterator[None]:
    """Fresh weights are a function of the recipe: a killed run begins again with the same."""
    with torch.random.fork_rng():
        torch.manual_seed(derive(recipe.digest, part))
        yield


def conditions_of(dataset: Dataset, *, memory: int = 0) -> Batch:
    """The conditions of all studies in one batch, read in parts so that images need not all fit.

    Args:
        dataset: of the studies.
        memory: frames of a clip's memory, see `Batch.conditions`.
    """
    starts = range(0, len(dataset), 256)
    parts = (load(dataset, range(k, min(k + 256, len(dataset)))) for k in starts)
    return Batch.concat([part.conditions(dataset.schema, memory=memory) for part in parts])
