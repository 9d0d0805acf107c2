"""Consumers of clips: a video regressor, a segmenter of frames, and the experiment over them."""

from dataclasses import replace

import torch
from toy_hearts import beating

from medgen.augmentation.augment import STRONG
from medgen.augmentation.consumers import network_for
from medgen.augmentation.experiment import prove
from medgen.augmentation.scores import mean_r2
from medgen.augmentation.tasks import chunk_of, task_for, train_consumer
from medgen.augmentation.verdict import (
    AUGMENTED,
    DUPLICATES,
    MIXED,
    PRETRAINED,
    RANDOMIZED,
    REAL,
    SYNTHETIC,
)
from medgen.augmentation.video_networks import Framewise, SmallVideoNet
from medgen.nn.nd import area_resize
from medgen.settings import ProveSettings
from medgen.types import Schema


def hearts(count, **settings):
    """Clips of 12 frames of 16 pixels a side, asked for their ejection fraction alone."""
    data = beating(count, frames=12, **settings)
    schema = replace(data.schema, size=(12, 16, 16), scalars=("ejection_fraction",))
    batch = replace(
        data.batch,
        image=area_resize(data.batch.image, (12, 16, 16)),
        mask=area_resize(data.batch.mask[:, None].float(), (12, 16, 16))[:, 0].round().long(),
        scalar=data.batch.scalar[:, :1],
    )
    return replace(data, schema=schema, batch=batch)


def test_a_regressor_learns_the_ejection_fraction_of_clips():
    """Predicting the mean has R2 0; what it learned is in the motion, not in any one frame."""
    learn, test = hearts(160, noise=0.05), hearts(80, seed=1, noise=0.05)
    task = task_for("regression", learn.schema)
    consumer = train_consumer(
        task, learn.batch.image, task.targets(learn.batch), steps=150, batch=16, lr=3e-3
    )
    truth = task.targets(test.batch)
    good = mean_r2(consumer.scores(test.batch.image, truth), truth.double().numpy())[0]
    still = test.batch.image[:, :, :1].expand_as(test.batch.image)
    frozen = mean_r2(consumer.scores(still, truth), truth.double().numpy())[0]
    assert good > 0.5
    assert frozen < 0


def test_the_network_sees_order_and_any_length():
    torch.manual_seed(0)
    network = SmallVideoNet(1, 2, (12, 16, 16)).eval()
    for block in network.time:
        torch.nn.init.normal_(block.second.weight, std=0.1)
    clips = hearts(3).batch.image
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert network(clips).shape == (3, 2)
    assert network(clips[:, :, :7]).shape == (3, 2)
    assert not torch.allclose(network(clips[:, :, order]), network(clips), atol=1e-3)


def test_frames_are_segmented_each_on_its_own():
    torch.manual_seed(0)
    data = hearts(2)
    task = task_for("segmentation", data.schema)
    network = task.network().eval()
    logits = network(data.batch.image)
    assert logits.shape == (2, 2, 12, 16, 16)
    torch.testing.assert_close(network(data.batch.image.flip(2)), logits.flip(2))
    assert task.loss(logits, task.targets(data.batch)).shape == (2,)
    assert task.scores(logits, task.targets(data.batch)).shape == (2, 1)


def test_augmentation_moves_all_frames_and_masks_alike():
    """Of a clip that stands still every frame stays the same, up to its noise."""
    data = hearts(3)
    still = data.batch.image[:, :, :1].expand_as(data.batch.image)
    masks = data.batch.mask[:, :1].expand_as(data.batch.mask).contiguous()
    quiet = replace(STRONG, noise=0.0)
    moved, moved_masks = quiet.apply(still, masks, torch.Generator().manual_seed(0))
    assert moved.shape == still.shape
    torch.testing.assert_close(moved, moved[:, :, :1].expand_as(moved))
    assert torch.equal(moved_masks, moved_masks[:, :1].expand_as(moved_masks))
    assert not torch.allclose(moved, still)
    assert not torch.equal(moved_masks, masks)


def test_a_chunk_is_a_number_of_frames():
    assert chunk_of(torch.zeros(1, 1, 8, 8)) == 128
    assert chunk_of(torch.zeros(1, 1, 32, 8, 8)) == 4
    assert chunk_of(torch.zeros(1, 1, 500, 8, 8)) == 1


def test_clips_alone_get_the_video_network():
    """Volumes have three axes too; only time tells a clip from them."""
    clip = Schema(size=(8, 16, 16), time=True)
    volume = Schema(size=(8, 16, 16))
    assert isinstance(network_for("medgen", clip, 2, dense=False), SmallVideoNet)
    assert isinstance(network_for("medgen", clip, 2, dense=True), Framewise)
    assert not isinstance(network_for("medgen", volume, 2, dense=False), SmallVideoNet)


def test_every_arm_of_the_experiment_runs_on_clips(tmp_path):
    settings = ProveSettings(
        task="regression",
        controls=("augmentation", "pretraining", "randomized"),
        repeats=1,
        steps=3,
        batch=4,
    )
    result = prove(
        hearts(20),
        hearts(8, seed=1, synthetic=True),
        settings,
        out=tmp_path,
        generator_saw={"studies": 12, "patients": 12},
    )
    every = {REAL, DUPLICATES, MIXED, SYNTHETIC, AUGMENTED, PRETRAINED, RANDOMIZED}
    assert {row["arm"] for row in result.rows} == every
    assert {row["steps"] for row in result.rows} == {3}
    assert result.metric == "R2"
    assert all("MAE ejection_fraction" in row["further"] for row in result.rows)
