"""Conditions enter as asked, become null one by one, and nothing leaks between studies."""

import math

import pytest
import torch
from safetensors.torch import save_file

from medgen.conditioners.ecg import EcgConditioner
from medgen.conditioners.frame import FrameConditioner
from medgen.conditioners.joint import JointConditioner
from medgen.conditioners.label import LabelConditioner
from medgen.conditioners.mask import MaskConditioner
from medgen.conditioners.scalar import ScalarConditioner
from medgen.errors import CheckpointError
from medgen.nn.nd import latent_times
from medgen.protocols import Conditioner
from medgen.registry import arguments, find, names
from medgen.types import Batch, Conditioning, CondSpec, LatentSpec, Schema

SCHEMA = Schema(
    size=(8, 8),
    findings=("effusion", "nodule", "edema"),
    mask_classes=("background", "lung", "heart"),
    scalars=("age", "ratio"),
)
CLASSES = Schema(size=(8, 8), findings=("normal", "bacterial", "viral"), exclusive=True)
LATENT = LatentSpec("continuous", (4, 4), 4)
COUNT = 5


class _Words(Conditioner):
    """A conditioner of tokens: report i has as many words as it has letters."""

    reads = frozenset({"text"})

    def __init__(self, width):
        super().__init__()
        self.spec = CondSpec(tokens=width)
        self.letters = torch.nn.Embedding(128, width)

    def encode(self, batch):
        longest = max(len(text) for text in batch.text)
        codes = torch.tensor([[ord(c) for c in text.ljust(longest)] for text in batch.text])
        lengths = torch.tensor([len(text) for text in batch.text])
        return Conditioning(
            tokens=self.letters(codes), mask=torch.arange(longest) < lengths[:, None]
        )

    def null(self, count):
        tokens = self.letters.weight[:1].expand(count, 1, -1)
        return Conditioning(tokens=tokens, mask=torch.ones(count, 1, dtype=torch.bool))


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(0)
    return Batch(
        label=torch.randint(-1, 2, (COUNT, 3), generator=rng),
        mask=torch.randint(0, 3, (COUNT, 8, 8), generator=rng),
        scalar=torch.rand(COUNT, 2, generator=rng) * 50,
        text=("a", "bcd", "ef", "ghij", "k"),
    )


@pytest.fixture
def joint():
    torch.manual_seed(0)
    parts = {
        "findings": LabelConditioner(SCHEMA, 16),
        "numbers": ScalarConditioner(SCHEMA, 8, low=(0.0, 0.0), high=(90.0, 60.0)),
        "anatomy": MaskConditioner(SCHEMA, LATENT),
        "report": _Words(6),
        "summary": _Words(10),
    }
    torch.nn.init.normal_(parts["anatomy"].unknown)
    return JointConditioner(parts)


def _equal(a, b):
    for field in ("vector", "tokens", "mask", "grid"):
        x, y = getattr(a, field), getattr(b, field)
        assert (x is None) == (y is None), field
        assert x is None or torch.equal(x, y), field


def _stands(cond, row):
    """The tokens of a study that are not padding."""
    return cond.tokens[row][cond.mask[row]]


def test_all_are_registered_and_wired():
    assert {"label", "mask", "scalar"} <= set(names("conditioner"))
    assert arguments(find("conditioner", "mask"))["latent"].wired
    assert not arguments(find("conditioner", "label"))["width"].wired


def test_joint_spec_is_what_encode_gives(joint, batch):
    cond = joint.encode(batch)
    assert joint.spec == CondSpec(vector=24, tokens=10, grid=3)
    assert cond.vector.shape == (COUNT, 24)
    assert cond.grid.shape == (COUNT, 3, 4, 4)
    assert cond.tokens.shape == (COUNT, 8, 10)
    assert cond.mask.sum(dim=1).tolist() == [2, 6, 4, 8, 2]


def test_dropping_everything_is_null(joint, batch):
    drop = torch.ones(COUNT, len(joint.names), dtype=torch.bool)
    dropped, null = joint.encode(batch, drop), joint.null(COUNT)
    assert torch.equal(dropped.vector, null.vector)
    assert torch.equal(dropped.grid, null.grid)
    for row in range(COUNT):
        torch.testing.assert_close(_stands(dropped, row), _stands(null, row))


def test_dropping_nothing_changes_nothing(joint, batch):
    drop = torch.zeros(COUNT, len(joint.names), dtype=torch.bool)
    _equal(joint.encode(batch, drop), joint.encode(batch))


def test_drop_is_per_study_and_per_condition(joint, batch):
    full, null = joint.encode(batch), joint.null(COUNT)
    drop = torch.zeros(COUNT, len(joint.names), dtype=torch.bool)
    drop[1, joint.names.index("findings")] = True
    drop[2, joint.names.index("anatomy")] = True
    drop[3, joint.names.index("report")] = True
    mixed = joint.encode(batch, drop)
    assert torch.equal(mixed.vector[1, :16], null.vector[1, :16])
    assert torch.equal(mixed.vector[1, 16:], full.vector[1, 16:])
    kept = [0, 2, 3, 4]
    assert torch.equal(mixed.vector[kept], full.vector[kept])
    assert torch.equal(mixed.grid[2], null.grid[2])
    assert torch.equal(mixed.grid[[0, 1, 3, 4]], full.grid[[0, 1, 3, 4]])
    assert mixed.mask.sum(dim=1).tolist() == [2, 6, 4, 5, 2]
    assert not torch.equal(full.vector[1, :16], null.vector[1, :16])


def test_absent_fields_are_null(joint):
    nothing = Batch(text=("a", "b"))
    cond, null = joint.encode(nothing), joint.null(2)
    assert torch.equal(cond.vector, null.vector)
    assert torch.equal(cond.grid, null.grid)


def test_permuting_studies_permutes_conditions(joint, batch):
    order = [3, 0, 4, 1, 2]
    permuted, cond = joint.encode(batch.select(order)), joint.encode(batch)
    assert torch.equal(permuted.vector, cond.vector[order])
    assert torch.equal(permuted.grid, cond.grid[order])
    assert torch.equal(permuted.tokens, cond.tokens[order])
    assert torch.equal(permuted.mask, cond.mask[order])


def test_training_and_sampling_encode_alike(joint, batch):
    _equal(joint.train().encode(batch), joint.eval().encode(batch))


def test_dropped_conditions_teach_null_and_nothing_else(batch):
    torch.manual_seed(0)
    label = LabelConditioner(CLASSES, 4)
    mask = MaskConditioner(SCHEMA, LATENT)
    scalar = ScalarConditioner(SCHEMA, 4, low=(0.0, 0.0), high=(90.0, 60.0))
    joint = JointConditioner({"label": label, "anatomy": mask, "numbers": scalar})
    classes = Batch(
        label=torch.eye(3, dtype=torch.int64), mask=batch.mask[:3], scalar=batch.scalar[:3]
    )
    drop = torch.ones(3, 3, dtype=torch.bool)
    cond = joint.encode(classes, drop)
    (cond.vector.sum() + cond.grid.sum()).backward()
    assert torch.equal(label.embedding.grad[0], torch.full((4,), 3.0))
    assert torch.equal(label.embedding.grad[1:], torch.zeros(3, 4))
    assert torch.equal(mask.unknown.grad, torch.full((3,), 3.0 * 16))
    assert torch.equal(scalar.unknown.grad, torch.full((2, 4), 3.0))
    assert scalar.weight.grad.abs().max() == 0


def test_no_parts_is_unconditional():
    joint = JointConditioner({})
    assert joint.spec == CondSpec()
    drop = torch.zeros(2, 0, dtype=torch.bool)
    _equal(joint.encode(Batch(label=torch.ones(2, 1)), drop), Conditioning())
    _equal(joint.null(3), Conditioning())


@pytest.mark.parametrize("name", ["keys", "a.b", ""])
def test_unusable_names_are_refused(name):
    with pytest.raises(ValueError, match="a condition cannot be named"):
        JointConditioner({name: LabelConditioner(SCHEMA, 4)})


def test_a_drop_of_another_shape_is_refused(joint, batch):
    with pytest.raises(ValueError, match=r"expected `drop` of shape \(5, 5\), got \(5, 1\)"):
        joint.encode(batch, torch.ones(COUNT, 1, dtype=torch.bool))


def test_multi_label_sums_the_states_of_its_findings():
    label = LabelConditioner(SCHEMA, 4)
    states = label.embedding
    cond = label.encode(Batch(label=torch.tensor([[1, 0, -1], [-1, -1, -1]])))
    torch.testing.assert_close(cond.vector[0], states[0, 2] + states[1, 1] + states[2, 0])
    assert torch.equal(cond.vector[1], label.null(1).vector[0])


def test_exclusive_findings_have_one_embedding_each():
    label = LabelConditioner(CLASSES, 4)
    cond = label.encode(Batch(label=torch.tensor([[0, 0, 1], [1, 0, 0], [-1, -1, -1]])))
    assert torch.equal(cond.vector, label.embedding[[3, 1, 0]])
    assert torch.equal(label.null(1).vector, label.embedding[:1])


def test_labels_of_another_schema_are_refused():
    with pytest.raises(ValueError, match="expected labels of 3 findings, got 2"):
        LabelConditioner(SCHEMA, 4).encode(Batch(label=torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="needs findings"):
        LabelConditioner(Schema(size=(8, 8)), 4)


def test_scalars_tell_near_from_far_and_unknown_is_null():
    torch.manual_seed(0)
    scalar = ScalarConditioner(SCHEMA, 64, low=(20.0, 0.3), high=(80.0, 0.7))
    values = torch.tensor([[50.0, 0.5], [50.5, 0.5], [70.0, 0.5], [math.nan, math.nan]])
    vector = scalar.encode(Batch(scalar=values)).vector
    near, far = (vector[0] - vector[1]).norm(), (vector[0] - vector[2]).norm()
    assert 0 < near < 0.3 * far
    assert torch.equal(vector[3], scalar.null(1).vector[0])


def test_one_unknown_scalar_leaves_the_other_known():
    torch.manual_seed(0)
    scalar = ScalarConditioner(SCHEMA, 8, low=(20.0, 0.3), high=(80.0, 0.7))
    values = torch.tensor([[50.0, math.nan], [60.0, math.nan], [50.0, 0.5]])
    vector = scalar.encode(Batch(scalar=values)).vector
    only = scalar.encode(Batch(scalar=torch.tensor([[math.nan, 0.5]]))).vector
    assert not torch.equal(vector[0], vector[1])
    # additive: known(50) + known(.5) = [known(50) + unknown] + [unknown + known(.5)] - null
    torch.testing.assert_close(vector[2], vector[0] + only[0] - scalar.null(1).vector[0])


def test_unknown_scalars_do_not_poison_gradients():
    scalar = ScalarConditioner(SCHEMA, 8, low=(20.0, 0.3), high=(80.0, 0.7))
    values = torch.tensor([[math.nan, 0.5], [40.0, math.nan]])
    scalar.encode(Batch(scalar=values)).vector.square().sum().backward()
    assert scalar.weight.grad.isfinite().all()
    assert scalar.weight.grad.abs().max() > 0


def test_fit_measures_known_values_once_and_is_saved():
    scalar = ScalarConditioner(SCHEMA, 8)
    values = torch.tensor([[10.0, 1.0], [30.0, math.nan], [20.0, 3.0]])
    JointConditioner({"numbers": scalar}).fit(Batch(scalar=values))
    torch.testing.assert_close(scalar.mean, torch.tensor([20.0, 2.0]))
    torch.testing.assert_close(scalar.std, torch.tensor([10.0, math.sqrt(2.0)]))
    copy = ScalarConditioner(SCHEMA, 8)
    copy.load_state_dict(scalar.state_dict())
    copy.fit(Batch(scalar=values * 7))
    assert torch.equal(
        copy.encode(Batch(scalar=values)).vector, scalar.encode(Batch(scalar=values)).vector
    )


def test_scalars_without_a_range_are_refused():
    scalar = ScalarConditioner(SCHEMA, 8)
    with pytest.raises(ValueError, match="the range of age, ratio is unknown"):
        scalar.encode(Batch(scalar=torch.zeros(1, 2)))
    with pytest.raises(ValueError, match="'ratio' has no two different known values"):
        scalar.fit(Batch(scalar=torch.tensor([[1.0, 2.0], [3.0, 2.0]])))
    with pytest.raises(ValueError, match="needs scalars"):
        ScalarConditioner(CLASSES, 8)
    with pytest.raises(ValueError, match="a `low` and a `high` for each of age, ratio"):
        ScalarConditioner(SCHEMA, 8, low=(0.0,), high=(1.0,))
    with pytest.raises(ValueError, match="must lie below"):
        ScalarConditioner(SCHEMA, 8, low=(0.0, 1.0), high=(1.0, 1.0))


def test_mask_is_the_share_of_each_class_under_a_latent_voxel():
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[0, :2, :2] = 1
    mask[0, 0, 2] = 2
    grid = MaskConditioner(SCHEMA, LATENT).encode(Batch(mask=mask)).grid[0]
    assert grid[:, 0, 0].tolist() == [-1, 1, -1]
    assert grid[:, 0, 1].tolist() == [0.5, -1, -0.5]
    assert grid[:, 3, 3].tolist() == [1, -1, -1]


def test_detail_keeps_every_pixel(batch):
    conditioner = MaskConditioner(SCHEMA, LATENT, detail=True)
    grid = conditioner.encode(batch).grid
    assert conditioner.spec.grid == 12
    assert grid.shape == (COUNT, 12, 4, 4)
    classes = grid.view(COUNT, 3, 2, 2, 4, 4).argmax(dim=1)  # b f1 f2 s1 s2
    assert torch.equal(classes.permute(0, 3, 1, 4, 2).reshape(COUNT, 8, 8), batch.mask)
    coarse = MaskConditioner(SCHEMA, LATENT).encode(batch).grid
    torch.testing.assert_close(grid.view(COUNT, 3, 4, 4, 4).mean(dim=2), coarse)


@pytest.mark.parametrize("detail", [False, True])
def test_pixels_of_unknown_class_are_null(detail):
    conditioner = MaskConditioner(SCHEMA, LATENT, detail=detail)
    torch.nn.init.normal_(conditioner.unknown)
    mask = torch.zeros(2, 8, 8, dtype=torch.int64)
    mask[0] = -1
    grid = conditioner.encode(Batch(mask=mask)).grid
    torch.testing.assert_close(grid[0], conditioner.null(1).grid[0])
    assert not torch.allclose(grid[1], grid[0])


def test_masks_follow_the_axes_of_the_latent():
    schema = Schema(size=(8, 4, 4), mask_classes=("background", "nodule"))
    conditioner = MaskConditioner(schema, LatentSpec("continuous", (4, 2, 2), 4))
    mask = torch.zeros(1, 8, 4, 4, dtype=torch.int64)
    mask[0, 6:, :2, 2:] = 1
    grid = conditioner.encode(Batch(mask=mask)).grid
    assert grid.shape == (1, 2, 4, 2, 2)
    assert grid[0, 1].nonzero().shape == (16, 3)
    assert (grid[0, 1] == 1).nonzero().tolist() == [[3, 0, 1]]


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected masks of size \(8, 8\), got \(4, 8\)"):
        MaskConditioner(SCHEMA, LATENT).encode(Batch(mask=torch.zeros(1, 4, 8)))
    with pytest.raises(ValueError, match="the studies have none"):
        MaskConditioner(CLASSES, LATENT)
    with pytest.raises(ValueError, match="leave detail off"):
        MaskConditioner(SCHEMA, LatentSpec("continuous", (3, 4), 4), detail=True)
    with pytest.raises(ValueError, match="cannot fit latents"):
        MaskConditioner(SCHEMA, LatentSpec("continuous", (4,), 4))


CLIPS = Schema(
    size=(16, 8, 8),
    spacing=(1 / 16, 1.0, 1.0),
    time=True,
    leads=("I", "II"),
    ecg_rate=100.0,
)
OF_CLIPS = LatentSpec("continuous", (4, 2, 2), 3)


class TestEcg:
    @pytest.fixture
    def conditioner(self):
        torch.manual_seed(0)
        doors = ("tokens", "grid", "vector")
        return EcgConditioner(CLIPS, OF_CLIPS, width=16, heads=2, channels=3, doors=doors)

    def test_shapes_at_every_door(self, conditioner):
        cond = conditioner.encode(Batch(ecg=torch.randn(2, 2, 100)))
        assert cond.tokens.shape == (2, 20, 16)
        assert cond.mask.all()
        assert cond.grid.shape == (2, 3, 4, 2, 2)
        assert cond.vector.shape == (2, 16)
        null = conditioner.null(2)
        assert null.grid.shape == cond.grid.shape

    def test_a_frame_sees_the_ecg_of_its_own_time(self, conditioner):
        """With attention out of the way: a spike at 0.6 s moves the frames around it alone."""
        conditioner.blocks = torch.nn.ModuleList()
        flat, spike = torch.zeros(1, 2, 100), torch.zeros(1, 2, 100)
        spike[..., 60] = 5
        moved = [conditioner.encode(Batch(ecg=x)).grid[0, :, :, 0, 0] for x in (flat, spike)]
        apart = (moved[0] - moved[1]).abs().sum(0)  # by latent frame, of a quarter of a second
        assert apart.argmax() == 2
        assert apart[2] > 0
        assert apart[0] == 0

    def test_unknown_is_null_and_missing_samples_are_told_apart(self, conditioner):
        ecg = torch.randn(3, 2, 100)
        ecg[1] = math.nan
        ecg[2, 0] = math.nan
        cond, null = conditioner.encode(Batch(ecg=ecg)), conditioner.null(3)
        for door in ("tokens", "grid", "vector"):
            same = torch.equal(getattr(cond, door)[1], getattr(null, door)[1])
            assert same, door
            assert getattr(cond, door).isfinite().all()
        zero = conditioner.encode(Batch(ecg=ecg.nan_to_num(0.0)))
        assert not torch.allclose(cond.tokens[2], zero.tokens[2])
        absent = conditioner.encode(Batch(scalar=torch.zeros(3, 1)))
        assert torch.equal(absent.grid, null.grid)

    def test_everything_learns(self, conditioner):
        ecg = torch.randn(2, 2, 100)
        ecg[1] = math.nan
        cond = conditioner.encode(Batch(ecg=ecg))
        (cond.tokens.sum() + cond.grid.square().sum() + cond.vector.square().sum()).backward()
        assert all(p.grad is not None for p in conditioner.parameters())

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(ValueError, match="needs clips with an ECG"):
            EcgConditioner(SCHEMA, LATENT)
        with pytest.raises(ValueError, match="latents of clips"):
            EcgConditioner(CLIPS, LATENT)
        with pytest.raises(ValueError, match="one or more of tokens"):
            EcgConditioner(CLIPS, OF_CLIPS, doors=())
        with pytest.raises(ValueError, match=r"\(2, 100\).*got \(2, 90\)"):
            EcgConditioner(CLIPS, OF_CLIPS).encode(Batch(ecg=torch.zeros(1, 2, 90)))

    def test_a_frozen_encoder_is_read_when_training_starts(self, conditioner, tmp_path):
        file = tmp_path / "model.safetensors"
        held = {f"conditioner.parts.ecg.{k}": v for k, v in conditioner.state_dict().items()}
        save_file(held, file)
        settings = {"width": 16, "heads": 2, "channels": 3, "encoder": str(file)}
        frozen = EcgConditioner(CLIPS, OF_CLIPS, **settings)
        frozen.fit(Batch())
        ecg = torch.randn(2, 2, 100)
        ours, theirs = (each.encode(Batch(ecg=ecg)) for each in (frozen, conditioner))
        assert torch.equal(ours.tokens, theirs.tokens)
        learned = {name for name, p in frozen.named_parameters() if p.requires_grad}
        assert learned == {"out.weight", "out.bias", "unknown"}
        wider = EcgConditioner(CLIPS, OF_CLIPS, **(settings | {"width": 32}))
        with pytest.raises(CheckpointError, match="no ECG transformer"):
            wider.fit(Batch())
        lost = EcgConditioner(CLIPS, OF_CLIPS, encoder=str(tmp_path / "absent.safetensors"))
        with pytest.raises(CheckpointError, match="cannot be read"):
            lost.fit(Batch())

    def test_times_of_latent_frames(self):
        assert latent_times(16, 4) == [2, 6, 10, 14]
        assert latent_times(17, 5) == [0.5, 3, 7, 11, 15]
        assert latent_times(9, 9) == [k + 0.5 for k in range(9)]
        assert latent_times(7, 1) == [3.5]


class TestFrame:
    def test_the_first_frame_stands_at_every_time(self):
        conditioner = FrameConditioner(CLIPS, OF_CLIPS, channels=5)
        clips = torch.randn(2, 1, 16, 8, 8)
        batch = Batch(image=clips).conditions(CLIPS)
        assert batch.image is None
        assert torch.equal(batch.frame, clips[:, :, 0])
        grid = conditioner.encode(batch).grid
        assert grid.shape == (2, 5, 4, 2, 2)
        assert torch.equal(grid[:, :, 0], grid[:, :, 3])
        # Every pixel of a block counts, and no pixel of another.
        changed = batch.frame.clone()
        changed[0, 0, 3, 3] += 1
        moved = (conditioner.encode(Batch(frame=changed)).grid - grid)[0, :, 0].abs().sum(0)
        assert (moved > 0).tolist() == [[True, False], [False, False]]

    def test_unknown_is_null(self):
        conditioner = FrameConditioner(CLIPS, OF_CLIPS)
        frame = torch.randn(2, 1, 8, 8)
        frame[1, 0, 0, 0] = math.nan
        grid, null = conditioner.encode(Batch(frame=frame)).grid, conditioner.null(2).grid
        assert torch.equal(grid[1], null[1])
        assert not torch.equal(grid[0], null[0])

    def test_images_have_no_first_frame(self):
        assert Batch(image=torch.zeros(1, 1, 8, 8)).conditions(SCHEMA).frame is None
        with pytest.raises(ValueError, match="needs clips"):
            FrameConditioner(SCHEMA, LATENT)
        with pytest.raises(ValueError, match="multiple"):
            FrameConditioner(CLIPS, LatentSpec("continuous", (4, 3, 3), 1))
