"""What a run directory holds for a report: every file is optional, a damaged one is an error."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medgen.errors import DataError
from medgen.types import Estimate


@dataclass(frozen=True)
class Comparison:
    """A paired difference between two arms of the experiment, at one fraction of the patients.

    Args:
        fraction: share of the training patients that the consumer used.
        arm: the arm that is judged.
        versus: the arm it is compared with.
        ratio: synthetic studies for every real one in `arm`; NaN where it has no meaning.
        estimate: the paired difference, arm minus versus.
        verdict: "helps", "no evidence" or "hurts".
        primary: the verdict of the experiment rests on it.
        p: p-value after correction for several comparisons; NaN where none was worked out.
        corrected: ends of the interval that goes with `p`; NaN where none was worked out.
        detectable: smallest difference that four of five such experiments would find; NaN where
            none was worked out.
        power: the same in a sentence.
    """

    fraction: float
    arm: str
    versus: str
    ratio: float
    estimate: Estimate
    verdict: str
    primary: bool = False
    p: float = math.nan
    corrected: tuple[float, float] = (math.nan, math.nan)
    detectable: float = math.nan
    power: str = ""


@dataclass(frozen=True)
class Proof:
    """The experiment whether synthetic studies help: prove.json.

    Args:
        task: "classification", "segmentation" or "regression".
        metric: name of the consumer's score.
        higher_is_better: direction of the score.
        rows: one trained consumer each, as written.
        comparisons: paired differences.
        settings: of the experiment.
        generator_saw: studies and patients that the generator was trained on.
        test: studies and patients that every arm was tested on.
        warnings: what a reader must know before trusting it.
        threshold: of segmentation, the score of the best threshold; NaN where there is none.
    """

    task: str
    metric: str
    higher_is_better: bool
    rows: tuple[Mapping[str, Any], ...]
    comparisons: tuple[Comparison, ...]
    settings: Mapping[str, Any]
    generator_saw: Mapping[str, Any]
    test: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    threshold: float = math.nan


@dataclass(frozen=True)
class Pair:
    """A synthetic study and the real one nearest to it.

    Args:
        synthetic: id of the synthetic study.
        real: id of the real study.
        distance: between the two, in the units of the audit.
        space: what the distance is measured in: "pixels", "features" or "registered".
        flipped: the synthetic one is mirrored left to right.
        score: of re-identification, in [0, 1]; NaN where none was worked out.
        false_alarms: share of unseen real studies that score as high; NaN as above.
    """

    synthetic: str
    real: str
    distance: float
    space: str = ""
    flipped: bool = False
    score: float = math.nan
    false_alarms: float = math.nan


@dataclass(frozen=True)
class RunResults:
    """Everything found in a run directory; what was not found is empty or None.

    Args:
        path: the run directory.
        recipe: text of recipe.yaml.
        log: lines of log.jsonl.
        previews: pictures drawn during training, in order.
        manifest: one line a synthetic study.
        rejected: one line a draw that a filter rejected.
        dataset: dataset.json of the synthetic dataset.
        metrics: estimates of evaluation.json by name.
        counts: of evaluation.json.
        extractor: of evaluation.json.
        pairs: the most suspicious pairs of the privacy audit.
        reidentification: reidentification.json: the audit's score of every sample.
        proof: prove.json.
    """

    path: Path
    recipe: str = ""
    log: tuple[Mapping[str, Any], ...] = ()
    previews: tuple[Path, ...] = ()
    manifest: tuple[Mapping[str, Any], ...] = ()
    rejected: tuple[Mapping[str, Any], ...] = ()
    dataset: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    counts: Mapping[str, Any] = field(default_factory=dict)
    extractor: Mapping[str, Any] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    reidentification: Mapping[str, Any] = field(default_factory=dict)
    proof: Proof | None = None

    def synthetic_image(self, identifier: str) -> Path | None:
        """The picture of a synthetic study, if the run directory holds it."""
        if Path(identifier).name != identifier:
            return None
        path = self.path / "synthetic" / "images" / f"{identifier}.png"
        return path if path.is_file() else None


def read_run(path: Path) -> RunResults:
    """Everything that a run directory holds for a report.

    Raises:
        DataError: the directory does not exist, or one of its files is damaged.
    """
    if not path.is_dir():
        raise DataError(f"{path}: expected a run directory. Start one with `medgen run RECIPE`.")
    evaluation = _read_json(path / "evaluation.json")
    proof = _read_json(path / "prove.json")
    recipe = path / "recipe.yaml"
    try:
        metrics = evaluation.get("metrics", {})
        return RunResults(
            path=path,
            recipe=recipe.read_text(encoding="utf-8") if recipe.is_file() else "",
            log=_read_lines(path / "log.jsonl", torn_end=True),
            previews=tuple(sorted((path / "samples").glob("*.png"))),
            manifest=_read_lines(path / "synthetic" / "manifest.jsonl"),
            rejected=_read_lines(path / "synthetic" / "rejected.jsonl"),
            dataset=_read_json(path / "synthetic" / "dataset.json"),
            metrics={name: read_estimate(values) for name, values in metrics.items()},
            counts=evaluation.get("counts") or {},
            extractor=evaluation.get("extractor") or {},
            pairs=tuple(_read_pair(values) for values in evaluation.get("pairs") or ()),
            reidentification=_read_json(path / "reidentification.json"),
            proof=_read_proof(proof) if proof else None,
        )
    except (KeyError, TypeError, ValueError, AttributeError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path}: evaluation.json, prove.json or recipe.yaml is not as medgen writes it "
            f"({type(error).__name__}: {error}). Run `medgen run` again to write it anew."
        ) from error


def read_estimate(values: Mapping[str, Any]) -> Estimate:
    """The estimate whose fields, read back from JSON, are `values`; null is NaN."""
    floor = values.get("floor")
    return Estimate(
        value=_number(values["value"]),
        low=_number(values.get("low")),
        high=_number(values.get("high")),
        n=int(values["n"]),
        higher_is_better=values.get("higher_is_better"),
        unit=str(values.get("unit") or ""),
        method=str(values.get("method") or ""),
        extractor=str(values.get("extractor") or ""),
        floor=read_estimate(floor) if floor else None,
        warning=str(values.get("warning") or ""),
    )


def _read_proof(values: Mapping[str, Any]) -> Proof:
    comparisons = tuple(
        Comparison(
            fraction=float(line["fraction"]),
            arm=str(line["arm"]),
            versus=str(line["versus"]),
            ratio=_number(line.get("ratio")),
            estimate=read_estimate(line["estimate"]),
            verdict=str(line["verdict"]),
            primary=bool(line.get("primary", False)),
            p=_number(line.get("p_holm", line.get("p"))),
            corrected=(_number(_end(line, "low")), _number(_end(line, "high"))),
            detectable=_number(line.get("detectable")),
            power=str(line.get("power") or ""),
        )
        for line in values.get("comparisons", ())
    )
    rows = tuple(
        {
            **row,
            "fraction": float(row["fraction"]),
            "arm": str(row["arm"]),
            "ratio": _number(row.get("ratio")),
            "value": _number(row["value"]),
        }
        for row in values.get("rows", ())
    )
    return Proof(
        task=str(values["task"]),
        metric=str(values["metric"]),
        higher_is_better=bool(values.get("higher_is_better", True)),
        rows=rows,
        comparisons=comparisons,
        settings=values.get("settings") or {},
        generator_saw=values.get("generator_saw") or {},
        test=values.get("test") or {},
        warnings=tuple(str(text) for text in values.get("warnings") or ()),
        threshold=_number(values.get("threshold")),
    )


def _end(line: Mapping[str, Any], name: str) -> Any:
    """One end of the corrected interval, if the experiment wrote one."""
    return (line.get("holm") or {}).get(name)


def _read_pair(values: Mapping[str, Any]) -> Pair:
    return Pair(
        synthetic=str(values["synthetic"]),
        real=str(values["real"]),
        distance=_number(values.get("distance")),
        space=str(values.get("space") or ""),
        flipped=bool(values.get("flipped", False)),
        score=_number(values.get("score")),
        false_alarms=_number(values.get("false_alarms")),
    )


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _read_json(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(
            f"{path}: expected JSON ({error}). Delete the file and run again."
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{path}: expected a JSON object, found {type(values).__name__}.")
    return values


def _read_lines(path: Path, *, torn_end: bool = False) -> tuple[Mapping[str, Any], ...]:
    """Lines of JSON; with `torn_end` a last line cut off by a kill is passed over."""
    if not path.is_file():
        return ()
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    values: list[Mapping[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError as error:
            if torn_end and number == len(lines):
                break
            raise DataError(f"{path}:{number}: expected a line of JSON ({error}).") from error
        if not isinstance(value, dict):
            raise DataError(f"{path}:{number}: expected a JSON object on every line.")
        values.append(value)
    return tuple(values)
