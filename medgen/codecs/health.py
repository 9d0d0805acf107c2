"""The gate before a generator may train on a codec: what is wrong, in sentences, or nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from medgen.codecs.quantizers import codebook_use
from medgen.errors import HealthError
from medgen.protocols import Codec

_LOSSLESS = 100.0
_DEAD = 0.01
_STD = (0.5, 2.0)
_MEAN = 0.5
_OUTLIER = 50.0
_EXPLAINED = 0.5
_USED, _PERPLEXITY = 0.5, 0.1
"""Of the codes that held-out tokens can show: the least that occur, and the least perplexity."""
_TOKENS_A_CODE = 8
_RETRAIN = "train the codec longer, give it more latent channels, or compress less"


@dataclass(frozen=True)
class Health:
    """How good a codec is on held-out images, and what keeps a generator from building on it.

    Args:
        psnr: of the reconstructions, mean over images, in dB; 100 at most.
        ssim: structural similarity of the reconstructions, mean over images.
        explained: share of the images' variance about their mean image that is reconstructed.
        latent_mean: of every channel; empty for tokens.
        latent_std: of every channel; empty for tokens.
        largest: largest absolute value of a latent; unit variance makes it standard deviations.
        images: how many images were looked at.
        problems: what is wrong and what to do about it, one sentence each; empty is healthy.
        usage: share of the codebook that occurs in these images; None without tokens.
        perplexity: of the tokens: as many codes, equally often, say as much; None without tokens.
    """

    psnr: float
    ssim: float
    explained: float
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    largest: float
    images: int
    problems: tuple[str, ...]
    usage: float | None = None
    perplexity: float | None = None

    def require(self) -> Health:
        """This report, if it holds no problem.

        Raises:
            HealthError: it does; all problems, one a line.
        """
        if self.problems:
            listed = "\n".join(f"- {problem}" for problem in self.problems)
            raise HealthError(f"this codec is not fit to train a generator on:\n{listed}")
        return self


@torch.no_grad()
def check_health(
    codec: Codec,
    images: Float[Tensor, "b c *s"],
    *,
    min_psnr: float = 20.0,
    min_ssim: float = 0.5,
    batch: int = 32,
) -> Health:
    """Look at a codec's weights, latents and reconstructions of held-out images.

    Args:
        codec: trained and fitted; its mode is restored afterwards.
        images: in [-1, 1], best 64 or more that it was not trained on.
        min_psnr: in dB.
        min_ssim: structural similarity.
        batch: images at once.

    Raises:
        ValueError: there are no images, or they are not finite.
    """
    if len(images) == 0 or not bool(torch.isfinite(images).all()):
        raise ValueError("expected finite images to judge a codec on")
    broken = [name for name, value in codec.state_dict().items() if not _finite(value)]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        problem = (
            f"{len(broken)} of its weights hold NaN or infinity ({', '.join(broken[:3])}{more}); "
            "go back to an earlier checkpoint and train on with a lower learning rate"
        )
        nan = math.nan
        return Health(nan, nan, nan, (), (), nan, len(images), (problem,))
    was_training = codec.training
    codec.eval()
    latents, reconstructions = _round_trip(codec, images, batch)
    codec.train(was_training)
    mean, std, largest, problems = _latent_statistics(codec, latents)
    usage = perplexity = None
    if codec.latent.domain == "tokens":
        usage, perplexity = codebook_use(latents, codec.latent.vocab)
        problems += _codebook_problems(usage, perplexity, latents.numel(), codec.latent.vocab)
    psnr, ssim, explained = _fidelity(images, reconstructions)
    problems += _fidelity_problems(psnr, ssim, explained, min_psnr, min_ssim)
    return Health(
        psnr, ssim, explained, mean, std, largest, len(images), tuple(problems), usage, perplexity
    )


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _round_trip(codec: Codec, images: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    device = next((value.device for value in codec.state_dict().values()), images.device)
    latents, reconstructions = [], []
    for part in images.split(batch):
        z = codec.encode(part.to(device))
        latents.append(z.cpu())
        reconstructions.append(codec.decode(z).float().cpu())
    return torch.cat(latents), torch.cat(reconstructions)


def _fidelity(images: Tensor, reconstructions: Tensor) -> tuple[float, float, float]:
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    error = (images - reconstructions).square()
    per_image = error.flatten(1).mean(dim=1).clamp_min(4 * 10 ** (-_LOSSLESS / 10))
    psnr = (10 * torch.log10(4 / per_image)).mean()
    if images.ndim == 3:  # a signal is an image whose rows are its leads
        images, reconstructions = images[:, None], reconstructions[:, None]
    small = min(images.shape[2:]) < 11
    sizes = {"kernel_size": 3, "sigma": 0.3} if small else {}
    ssim = similarity(
        (reconstructions + 1) / 2, (images + 1) / 2, data_range=1.0, reduction=None, **sizes
    )
    spread = (images - images.mean(dim=0)).square().mean()
    if len(images) == 1 or spread == 0:
        spread = (images - images.mean()).square().mean()
    explained = 1 - error.mean() / spread if spread > 0 else torch.tensor(math.nan)
    return float(psnr), float(torch.as_tensor(ssim).mean()), float(explained)


def _fidelity_problems(
    psnr: float, ssim: float, explained: float, min_psnr: float, min_ssim: float
) -> list[str]:
    problems = []
    if not (psnr >= min_psnr and ssim >= min_ssim):
        problems.append(
            f"its reconstructions of held-out images reach {psnr:.1f} dB PSNR and {ssim:.2f} SSIM, "
            f"expected at least {min_psnr:g} dB and {min_ssim:g}; {_RETRAIN}"
        )
    elif explained < _EXPLAINED:
        problems.append(
            f"its reconstructions hold {max(explained, 0):.0%} of what tells one held-out image "
            f"from another, expected at least {_EXPLAINED:.0%}: it draws an average image; "
            f"{_RETRAIN}"
        )
    return problems


def _latent_statistics(
    codec: Codec, z: Tensor
) -> tuple[tuple[float, ...], tuple[float, ...], float, list[str]]:
    problems: list[str] = []
    if tuple(z.shape[1:]) != codec.latent.shape:
        problems.append(
            f"its latents have shape {tuple(z.shape[1:])}, but it declares {codec.latent.shape}; "
            "the codec's code is wrong"
        )
    if not z.is_floating_point():
        return (), (), 0.0, problems
    flat = z.double().transpose(0, 1).flatten(1)
    if not _finite(flat):
        share = 1 - torch.isfinite(flat).double().mean().item()
        problems.append(f"{share:.1%} of its latents are NaN or infinite; train it again in fp32")
        return (), (), math.nan, problems
    mean, std = flat.mean(dim=1), flat.std(dim=1, correction=0)
    largest = flat.abs().amax(dim=1)
    whitening = getattr(codec, "whitening", None)
    if whitening is not None and not bool(whitening.fitted):
        problems.append(
            "its shift and scale were never measured, so latents have no unit variance; call "
            "codec.fit(images) with training images"
        )
    elif getattr(whitening, "whiten", "channel") != "channel":
        problems += _global_problems(mean, std)
    else:
        problems += _channel_problems(mean, std, largest)
    return tuple(mean.tolist()), tuple(std.tolist()), float(largest.max()), problems


def _codebook_problems(usage: float, perplexity: float, tokens: int, vocab: int) -> list[str]:
    """A codebook that collapsed; few tokens can show few codes, which is nobody's fault."""
    showable = min(vocab, tokens // _TOKENS_A_CODE)
    if usage * vocab >= _USED * showable and perplexity >= _PERPLEXITY * showable:
        return []
    return [
        f"its codebook collapsed: {usage:.0%} of its {vocab} codes occur in {tokens} held-out "
        f"tokens, with a perplexity of {perplexity:.0f}, expected at least {_USED * showable:.0f} "
        f"codes and a perplexity of {_PERPLEXITY * showable:.0f}; train it longer or with a larger "
        "batch, or give it a smaller vocabulary"
    ]


def _global_problems(mean: Tensor, std: Tensor) -> list[str]:
    rms = float(std.square().mean().sqrt())
    if _STD[0] <= rms <= _STD[1] and bool((mean.abs() <= _MEAN * std.max()).all()):
        return []
    return [
        f"its latents have standard deviation {rms:.2g} over all channels and means up to "
        f"{float(mean.abs().max()):.2g}, expected 1 and 0; call codec.fit(images) with images like "
        "these"
    ]


def _channel_problems(mean: Tensor, std: Tensor, largest: Tensor) -> list[str]:
    problems = []
    dead = [i for i, value in enumerate(std.tolist()) if value < _DEAD]
    if dead:
        problems.append(
            f"latent channels {dead} of {len(std)} are dead: they hold one value for every image; "
            "use fewer latent channels or a smaller KL weight, and train it again"
        )
    off = [
        i
        for i, (m, s) in enumerate(zip(mean.tolist(), std.tolist(), strict=True))
        if i not in dead and (abs(m) > _MEAN or not _STD[0] <= s <= _STD[1])
    ]
    if off:
        found = [f"{i} (mean {mean[i]:.2g}, standard deviation {std[i]:.2g})" for i in off]
        problems.append(
            f"latent channels {', '.join(found)} are far from mean 0 and standard deviation 1; "
            "call codec.fit(images) with images like these"
        )
    wild = [
        i for i, value in enumerate(largest.tolist()) if value > _OUTLIER and i not in dead + off
    ]
    if wild:
        problems.append(
            f"latent channels {wild} hold values up to {float(largest.max()):.0f} standard "
            "deviations from 0, which no generator will draw; raise the KL weight and train it "
            "again"
        )
    return problems
