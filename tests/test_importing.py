"""Imported weights compute what the original network computes."""

import json
import re
import zipfile

import pytest
import torch
from click.testing import CliRunner
from monai.apps.generation.maisi.networks.autoencoderkl_maisi import AutoencoderKlMaisi
from monai.apps.generation.maisi.networks.diffusion_model_unet_maisi import DiffusionModelUNetMaisi
from monai.networks.nets.autoencoderkl import AutoencoderKL
from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
from safetensors.torch import save_file

from medgen import registry
from medgen.assembly import load_codec
from medgen.checkpoint import load_into, read_metadata, read_weights
from medgen.cli.main import cli
from medgen.errors import CheckpointError, OutputError
from medgen.importing import AutoencoderFacts, UNetFacts, facts_of, import_checkpoint, read_tensors
from medgen.types import Conditioning, CondSpec, LatentSpec


def randomized(network, seed=0):
    """The network with random weights everywhere, also where it starts from zeros.

    What embeds times, classes and spacings is three times as large as is usual (but what reads
    spacings, which come in hundreds), so that each of them decides much of the output.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, value in network.named_parameters():
        noise = torch.randn(value.shape, generator=generator)
        gain = 0.03 if "_layer.0" in name else 3 if re.search("emb|_layer", name) else 1
        value.data = 1 + 0.1 * noise
        if value.ndim > 1:
            value.data = gain * noise / value[0].numel() ** 0.5
    return network.eval()


def old_names(state):
    """The names of monai-generative: attention's layers in its block, upsampling's `conv`."""
    renamed = {}
    for name, tensor in state.items():
        name = re.sub(r"\.attn\.(to_[qkv])\.", r".\1.", name)
        name = name.replace(".attn.out_proj.", ".proj_attn.").replace(".postconv.", ".conv.")
        renamed[name] = tensor
    assert set(renamed) != set(state)
    return renamed


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def kl(dims=3, **settings):
    asked = {
        "num_res_blocks": (1, 1),
        "channels": (8, 16),
        "attention_levels": (False, False),
        "latent_channels": 3,
        "norm_num_groups": 4,
        "with_encoder_nonlocal_attn": False,
        "with_decoder_nonlocal_attn": False,
    } | settings
    return randomized(AutoencoderKL(dims, 1, 1, **asked))


AUTOENCODERS = {
    "3-D": (kl, {}),
    "2-D, two blocks, attention in the middle": (
        kl,
        {
            "dims": 2,
            "num_res_blocks": (2, 2),
            "with_encoder_nonlocal_attn": True,
            "with_decoder_nonlocal_attn": True,
        },
    ),
    "attention in a level and in the middle": (
        kl,
        {
            "attention_levels": (False, True),
            "with_encoder_nonlocal_attn": True,
            "with_decoder_nonlocal_attn": True,
        },
    ),
    "attention in a level, one layer for q, k, v, none behind": (
        kl,
        {"attention_levels": (False, True), "include_fc": False, "use_combined_linear": True},
    ),
}


def round_trip(network, image):
    """The original's latents and image, of an image in [0, 1]."""
    with torch.no_grad():
        z = network.encode(image)[0]
        return z, network.decode(z)


def check_autoencoder(network, state, folder, size):
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "net.safetensors")
    facts = AutoencoderFacts(size=size, groups=4, scale=0.5)
    import_checkpoint(folder / "net.safetensors", folder / "made", facts)
    codec = load_codec(folder / "made")
    image = noise(2, 1, *size).sigmoid()
    z, decoded = round_trip(network, image)
    with torch.no_grad():
        torch.testing.assert_close(codec.encode(image * 2 - 1), z * 0.5, atol=1e-5, rtol=1e-5)
        found = codec.decode(z * 0.5)
        wanted = (decoded * 2 - 1).clamp(-1, 1)
        torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-5)
        assert wanted.std() > 0.1
        codec.memory = 1
        assert codec.plan("decode", tuple(z.shape)).slabs > 1
        torch.testing.assert_close(codec.decode(z * 0.5), wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("names", ["of today", "of monai-generative"])
@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_autoencoders_of_monai(kind, names, tmp_path):
    build, settings = AUTOENCODERS[kind]
    network = build(**settings)
    state = network.state_dict()
    if names == "of monai-generative":
        state = old_names(state)
    check_autoencoder(network, state, tmp_path, (8, 12, 8)[: settings.get("dims", 3)])


def test_the_autoencoder_of_maisi(tmp_path):
    network = randomized(
        AutoencoderKlMaisi(
            3,
            1,
            1,
            num_res_blocks=(1, 1, 1),
            num_channels=(8, 8, 16),
            attention_levels=(False,) * 3,
            latent_channels=4,
            norm_num_groups=4,
            num_splits=1,
            save_mem=False,
        )
    )
    check_autoencoder(network, network.state_dict(), tmp_path, (32, 8, 12))


def check_unet(network, state, folder, facts, **vectors):
    torch.save({"unet_state_dict": state, "scale_factor": torch.tensor(1.2)}, folder / "net.pt")
    said = import_checkpoint(folder / "net.pt", folder / "made", facts)
    assert "backbone" in said
    weights, metadata = read_weights(folder / "made")
    assert metadata["kind"] == "backbone"
    section = json.loads(metadata["recipe"])["backbone"]
    axes = network.conv_in.conv.weight.ndim - 2
    latent = LatentSpec("continuous", (8,) * axes, channels=3)
    arguments = {key: value for key, value in section.items() if key != "type"}
    grid = network.in_channels - network.out_channels
    ours = registry.build("backbone", "unet", arguments, latent=latent, cond=CondSpec(grid=grid))
    load_into(ours, {name.removeprefix("backbone."): value for name, value in weights.items()})
    z = noise(2, network.in_channels, *latent.size)
    steps = torch.tensor([900.0, 137.0])
    start = 1000 if facts.time == "rectified_flow" else 999
    mask = z[:, 3:] if grid else None
    with torch.no_grad():
        wanted = network(z, steps, **vectors)
        found = ours.eval()(z[:, :3], (start - steps) / 1000, Conditioning(grid=mask))
        other = ours(z[:, :3], torch.tensor([0.5, 0.5]), Conditioning(grid=mask))
        assert (other - wanted).std() > 0.05 * wanted.std()
    # The angles of both embeddings reach 1000, where float32 is exact to 6e-5.
    torch.testing.assert_close(found, wanted, atol=1e-3 * wanted.std().item(), rtol=0)


def unet(kind=DiffusionModelUNet, width="channels", **settings):
    asked = {
        "spatial_dims": 3,
        "in_channels": 3,
        "out_channels": 3,
        width: (8, 16),
        "attention_levels": (False, True),
        "num_res_blocks": (1, 1),
        "num_head_channels": 8,
        "norm_num_groups": 4,
    } | settings
    return randomized(kind(**asked))


@pytest.mark.parametrize("names", ["of today", "of monai-generative"])
@pytest.mark.parametrize("time", ["rectified_flow", "ddpm"])
def test_unets_of_monai(names, time, tmp_path):
    network = unet()
    state = network.state_dict()
    if names == "of monai-generative":
        state = old_names(state)
    check_unet(network, state, tmp_path, UNetFacts(groups=4, time=time))


def test_a_unet_of_classes_in_two_dimensions_with_a_mask_beside_the_latent(tmp_path):
    network = unet(spatial_dims=2, num_class_embeds=5, in_channels=5)
    facts = UNetFacts(groups=4, label=2)
    classes = {"class_labels": torch.tensor([2, 2])}
    check_unet(network, network.state_dict(), tmp_path, facts, **classes)


@pytest.mark.parametrize("regions", [False, True])
def test_the_unet_of_maisi(regions, tmp_path):
    network = unet(
        DiffusionModelUNetMaisi,
        "num_channels",
        num_class_embeds=4,
        resblock_updown=True,
        include_fc=False,
        include_spacing_input=True,
        include_top_region_index_input=regions,
        include_bottom_region_index_input=regions,
    )
    spacing, top, bottom = (1.5, 1.5, 2.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 1.0, 0.0)
    told = {"top_region_index": top, "bottom_region_index": bottom} if regions else {}
    vectors = {f"{key}_tensor": torch.tensor([value] * 2) * 100 for key, value in told.items()}
    check_unet(
        network,
        network.state_dict(),
        tmp_path,
        UNetFacts(groups=4, label=1, spacing=spacing, **told),
        spacing_tensor=torch.tensor([spacing] * 2) * 100,
        class_labels=torch.tensor([1, 1]),
        **vectors,
    )


class TestWhatDoesNotFit:
    def refused(self, tmp_path, state, facts, match):
        save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "net.safetensors")
        with pytest.raises(CheckpointError, match=match):
            import_checkpoint(tmp_path / "net.safetensors", tmp_path / "made", facts)
        assert not (tmp_path / "made").exists()

    def test_networks(self, tmp_path):
        cube = AutoencoderFacts(size=(8, 8, 8), groups=4)
        other = {"layer.weight": torch.zeros(2, 2), "layer.bias": torch.zeros(2)}
        self.refused(tmp_path, other, cube, "expected the weights of a KL autoencoder")
        self.refused(tmp_path, other, UNetFacts(), "expected the weights of a diffusion U-Net")
        state = kl(use_convtranspose=True).state_dict()
        self.refused(tmp_path, state, cube, "transposed convolutions")
        uneven = kl(num_res_blocks=(1, 2)).state_dict()
        self.refused(tmp_path, uneven, cube, r"\[1, 2\] residual blocks")
        context = unet(with_conditioning=True, cross_attention_dim=4).state_dict()
        self.refused(tmp_path, context, UNetFacts(groups=4), "attends to a context")

    def test_facts(self, tmp_path):
        state = kl().state_dict()
        flat = AutoencoderFacts(size=(8, 8), groups=4)
        self.refused(tmp_path, state, flat, "expected 3 sides")
        self.refused(tmp_path, state, AutoencoderFacts(size=(8, 8, 8)), "multiples of 32")
        classes = unet(num_class_embeds=5).state_dict()
        self.refused(tmp_path, classes, UNetFacts(groups=4), "5 classes; say which")
        plain = unet().state_dict()
        self.refused(tmp_path, plain, UNetFacts(groups=4, label=1), "no classes")
        self.refused(tmp_path, plain, UNetFacts(groups=4, spacing=(1, 1, 1)), "reads none")

    def test_kinds_and_keys(self):
        with pytest.raises(CheckpointError, match="nothing here takes a 'vqvae'"):
            facts_of("vqvae", [])
        with pytest.raises(CheckpointError, match="Did you mean 'groups'"):
            facts_of("unet", ["group=4"])
        with pytest.raises(CheckpointError, match="size"):
            facts_of("autoencoder", [])
        with pytest.raises(CheckpointError, match="--kind unet"):
            facts_of("unet", ["label=liver"])

    def test_a_folder_that_holds_something(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OutputError, match="not empty"):
            import_checkpoint(tmp_path / "net.pt", tmp_path, UNetFacts())


class Trap:
    """Would write a file if a pickle of it were opened."""

    def __reduce__(self):
        return open, ("trap.txt", "w")


class TestFiles:
    def test_nothing_in_a_file_is_run(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        torch.save({"a": torch.zeros(1), "b": Trap()}, "trap.pt")
        with pytest.raises(CheckpointError, match="without running code"):
            read_tensors(tmp_path / "trap.pt")
        assert not (tmp_path / "trap.txt").exists()

    def test_files_that_grow_are_refused(self, tmp_path):
        torch.save({"a": torch.zeros(2**20), "b": torch.zeros(1)}, tmp_path / "plain.pt")
        with (
            zipfile.ZipFile(tmp_path / "plain.pt") as plain,
            zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for name in plain.namelist():
                bomb.writestr(name, plain.read(name))
        assert (tmp_path / "bomb.pt").stat().st_size < 2**16
        with pytest.raises(CheckpointError, match="compressed"):
            read_tensors(tmp_path / "bomb.pt")
        torch.save({"a": torch.zeros(1).expand(10**9), "b": torch.zeros(1)}, tmp_path / "wide.pt")
        with pytest.raises(CheckpointError, match="more numbers than the file holds"):
            read_tensors(tmp_path / "wide.pt")

    def test_damage_is_named(self, tmp_path):
        (tmp_path / "text.pt").write_bytes(b"no archive")
        with pytest.raises(CheckpointError, match="is not an archive"):
            read_tensors(tmp_path / "text.pt")
        with pytest.raises(CheckpointError, match="no such file"):
            read_tensors(tmp_path / "absent.pt")
        pair = {"w": torch.zeros(1), "b": torch.zeros(1)}
        torch.save({"one": pair, "two": pair}, tmp_path / "two.pt")
        with pytest.raises(CheckpointError, match=r"2 tables of them \(one, two\)"):
            read_tensors(tmp_path / "two.pt")

    def test_the_prefix_of_parallel_training_goes(self, tmp_path):
        torch.save({"module.w": torch.ones(2), "module.b": torch.zeros(2)}, tmp_path / "a.pt")
        assert set(read_tensors(tmp_path / "a.pt")) == {"w", "b"}


def test_the_command(tmp_path):
    torch.save(kl().state_dict(), tmp_path / "vae.pt")
    asked = ["checkpoints", "import", str(tmp_path / "vae.pt"), "--kind", "autoencoder"]
    asked += ["--out", str(tmp_path / "made"), "--set", "size=[8,8,8]", "--set", "groups=4"]
    done = CliRunner().invoke(cli, [*asked, "--set", "window=[-1000,1000]"])
    assert done.exit_code == 0, done.output
    assert "'channels': [8, 16]" in done.output
    assert json.loads(read_metadata(tmp_path / "made")["schema"])["window"] == [-1000, 1000]
    assert not load_codec(tmp_path / "made").whitening.fitted
