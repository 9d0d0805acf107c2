"""The codec of leads: what it decodes obeys the laws of the limb leads."""

import pytest
import torch

from medgen.codecs.leads import INDEPENDENT, Leads
from medgen.types import Schema

SCHEMA = Schema(size=(96,), channels=12, time=True, spacing=(0.01,), window=(-5.0, 5.0))


def lawful(count=6):
    """Twelve leads (b 12 96) that follow from eight smooth ones."""
    waves = torch.randn(count, 8, 96, generator=torch.Generator().manual_seed(0)).cumsum(-1) / 60
    one, two = waves[:, 0], waves[:, 1]
    limbs = [two - one, -(one + two) / 2, one - two / 2, two - one / 2]
    return torch.cat([waves[:, :2], torch.stack(limbs, dim=1), waves[:, 2:]], dim=1).clamp(-1, 1)


def test_a_lawful_recording_comes_back():
    images = lawful()
    codec = Leads(SCHEMA, patch=8)
    codec.fit(images)
    z = codec.encode(images)
    assert z.shape == (6, 64, 12) == (6, *codec.latent.shape)
    torch.testing.assert_close(codec.decode(z), images, atol=1e-5, rtol=0)


def test_whatever_is_decoded_obeys_the_laws():
    codec = Leads(SCHEMA, patch=4)
    codec.fit(lawful())
    drawn = codec.decode(3 * torch.randn(4, *codec.latent.shape))
    one, two, three, avr, avl, avf = drawn[:, :6].unbind(1)
    torch.testing.assert_close(one + three, two, atol=1e-6, rtol=0)
    torch.testing.assert_close(avr + avl + avf, torch.zeros_like(avr), atol=1e-6, rtol=0)
    torch.testing.assert_close(avf, (two + three) / 2, atol=1e-6, rtol=0)
    assert drawn[:, list(INDEPENDENT)].abs().max() <= 1


@pytest.mark.parametrize(
    "wrong", [Schema(size=(96,), channels=8, time=True), Schema(size=(96, 8), channels=12)]
)
def test_other_studies_are_refused(wrong):
    with pytest.raises(ValueError, match="expected 12 leads along time"):
        Leads(wrong)
