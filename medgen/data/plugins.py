"""Studies as other tools take them: dictionaries and a transform of MONAI, subjects of TorchIO."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import MapTransform, RandomizableTransform

from medgen.data.mixing import only_training
from medgen.errors import DataError, MissingExtraError
from medgen.protocols import Dataset

if TYPE_CHECKING:
    import torchio

IDENTITY = ("id", "patient")
"""Keys of an item that say whose it is."""


class Dictionaries(Sequence[dict[str, Any]]):
    """Studies as the dictionaries that MONAI's transforms take.

    Wrap it in `monai.data.Dataset(Dictionaries(dataset), transform)`. An item holds "image" (c *s)
    float32 in [-1, 1] and, of the following, what its study does: "mask" (1 *s) int64 classes,
    "label" (k,) int64 with -1 for unknown, "class" (the number of an exclusive finding, -1 for
    unknown), "scalar" (m,) with NaN for unknown, "report"; and "id", "patient", "split" and
    "synthetic".

    Args:
        dataset: real or synthetic studies.

    Raises:
        DataError: from an item: a synthetic study stands outside the training split.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        batch, study = self.dataset[index], self.dataset.studies[index]
        synthetic = batch.provenance is not None and batch.provenance[0].synthetic
        if synthetic and study.split != "train":
            raise DataError(
                f"study '{study.id}' is synthetic and stands in the split '{study.split}'; "
                "synthetic studies may only train"
            )
        item: dict[str, Any] = {
            "id": study.id,
            "patient": study.patient,
            "split": study.split,
            "synthetic": synthetic,
        }
        for name, value in (("image", batch.image), ("label", batch.label)):
            if value is not None:
                item[name] = value[0]
        if batch.mask is not None:
            item["mask"] = batch.mask
        if batch.scalar is not None:
            item["scalar"] = batch.scalar[0]
        if batch.text is not None:
            item["report"] = batch.text[0]
        if batch.label is not None and self.dataset.schema.exclusive:
            row = batch.label[0]
            item["class"] = int(row.argmax()) if row.max() > 0 else -1
        return item


class RandSyntheticd(RandomizableTransform, MapTransform):
    """MONAI dictionary transform: a training item becomes a synthetic one with a probability.

    It stands after what brings real images to their size and range, before what augments them.
    Items get a key "synthetic" (bool). An item's "id" and "patient", if it has them, are replaced
    too: a synthetic image never goes under a patient's name. Other keys stay as they are.

    Args:
        keys: of the item, what is replaced.
        dataset: synthetic training studies.
        prob: of replacing an item.
        fields: what of a synthetic study replaces each key, as `Dictionaries` names it; by default
            the keys' own names. For keys "image" and "label", the latter a mask: ("image", "mask").
        intensity: what the pipeline's images range over, in place of [-1, 1].
        allow_missing_keys: pass over keys that an item lacks.

    Raises:
        DataError: the studies are not all for training or lack a field; from an item: it is not a
            training one, has another shape than the synthetic one, or that one is not synthetic.
        ValueError: there are not as many fields as keys.
    """

    def __init__(
        self,
        keys: str | Sequence[Hashable],
        dataset: Dataset,
        prob: float = 0.1,
        *,
        fields: Sequence[str] | None = None,
        intensity: tuple[float, float] = (-1.0, 1.0),
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        names = [str(key) for key in self.keys] if fields is None else list(fields)
        if len(names) != len(self.keys):
            raise ValueError(f"got {len(names)} fields for {len(self.keys)} keys")
        only_training(dataset)
        self.fields = dict(zip(self.keys, names, strict=True))
        self.intensity = intensity
        self.items = Dictionaries(dataset)
        held = self.items[0]
        lacking = sorted(set(names) - set(held))
        if lacking:
            raise DataError(
                f"synthetic studies hold no {', '.join(lacking)}; they hold {', '.join(held)}. "
                "Name their fields with `fields`."
            )

    def randomize(self, data: Any = None) -> None:
        """Decide whether the next item is replaced, and by which synthetic study."""
        super().randomize(data)
        self.index = int(self.R.randint(len(self.items)))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item, or a synthetic one in its place."""
        item = dict(data)
        if item.get("split", "train") != "train":
            raise DataError(
                f"an item of the split '{item['split']}' came to RandSyntheticd; synthetic studies "
                "may only train: leave it out of the transforms for validation and test"
            )
        self.randomize()
        item.setdefault("synthetic", False)
        if not self._do_transform:
            return item
        drawn = self.items[self.index]
        if not drawn["synthetic"]:
            raise DataError(f"study '{drawn['id']}' is a real study by its provenance")
        low, high = self.intensity
        drawn["image"] = drawn["image"] * ((high - low) / 2) + (high + low) / 2
        for key in self.key_iterator(item):
            item[key] = _in_place_of(item[key], drawn[self.fields[key]], str(key))
        return item | {key: drawn[key] for key in IDENTITY if key in item} | {"synthetic": True}


def subjects(
    dataset: Dataset, transform: Callable[[torchio.Subject], Any] | None = None
) -> torchio.SubjectsDataset:
    """Studies as a TorchIO dataset, for its transforms, loaders and queues.

    A subject holds "image", a `ScalarImage`, "mask", a `LabelMap`, where its study has one, and
    the other keys of `Dictionaries`. Two-dimensional images are (c h w 1), as TorchIO has them.

    Args:
        dataset: real or synthetic studies.
        transform: applied to every subject.

    Raises:
        DataError: a synthetic study stands outside the training split.
        MissingExtraError: TorchIO is not installed.
    """
    try:
        import torchio
    except ImportError as error:
        raise MissingExtraError(
            "subjects need TorchIO: install it with `pip install 'medgen[torchio]'`"
        ) from error

    class Subjects(Sequence[torchio.Subject]):
        """Subjects made of their studies when they are asked for."""

        items = Dictionaries(dataset)

        def __len__(self) -> int:
            return len(self.items)

        def __getitem__(self, index: Any) -> Any:
            held = self.items[index]
            if isinstance(index, slice):
                return [_subject(each) for each in held]
            return _subject(held)

    return torchio.SubjectsDataset(Subjects(), transform)


def _subject(item: dict[str, Any]) -> torchio.Subject:
    import torchio

    images: dict[str, Any] = {"image": torchio.ScalarImage(tensor=_volume(item["image"]))}
    if "mask" in item:
        images["mask"] = torchio.LabelMap(tensor=_volume(item["mask"]).to(torch.int32))
    return torchio.Subject(item | images)


def _volume(image: torch.Tensor) -> torch.Tensor:
    """(c *s) with three spatial axes."""
    return image.reshape(*image.shape, *[1] * (4 - image.ndim))


def _in_place_of(real: Any, drawn: Any, key: str) -> Any:
    """A synthetic value as the real one is stored: an array or tensor of its shape and type."""
    if not isinstance(real, (np.ndarray, torch.Tensor)):
        return drawn
    value = torch.as_tensor(drawn)
    if tuple(real.shape) != tuple(value.shape):
        raise DataError(
            f"'{key}' of an item is {tuple(real.shape)}, of the synthetic studies "
            f"{tuple(value.shape)}; bring the real ones to that shape first, or choose another of "
            "`fields`"
        )
    if isinstance(real, np.ndarray):
        return value.numpy().astype(real.dtype)
    value = value.to(real.device, real.dtype)
    return MetaTensor(value) if isinstance(real, MetaTensor) else value
