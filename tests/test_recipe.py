import re

import pytest

from medgen.errors import RecipeError
from medgen.recipe import load_recipe, shipped
from medgen.registry import PACKAGES, arguments, find, names, register

BROKEN = """\
name: broken
summary: Every kind of mistake.
data: {type: simulatd, count: 10}
codec: {type: pixels, patch: two, schema: 3}
backbone: {type: unet, chanels: [32, 32], latent: 4}
objective: {type: flow_matching, prediction: velocty}
sampler: {type: ab2, steps: 4.5}
guidance: {dropout: 2}
train: {batch: 4}
tarin: {}
"""


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_checks(name):
    recipe = load_recipe(name)
    assert recipe.name == name
    assert recipe.summary


@pytest.mark.parametrize("name", sorted(shipped()))
def test_a_resolved_recipe_loads_to_itself(name, tmp_path):
    recipe = load_recipe(name)
    file = tmp_path / "resolved.yaml"
    file.write_text(recipe.to_yaml())
    assert load_recipe(file).sections == recipe.sections
    assert load_recipe(file).digest == recipe.digest


def test_dropout_by_condition():
    recipe = load_recipe("cxr/quickstart", ["guidance.dropout={findings: 0.5}"])
    assert recipe.sections["guidance"]["dropout"] == {"findings": 0.5}
    with pytest.raises(RecipeError) as error:
        load_recipe("cxr/quickstart", ["guidance.dropout={finding: 0.5, findings: 1}"])
    first, second = error.value.problems
    assert "guidance.dropout.finding" in first
    assert "Did you mean 'findings'" in first
    assert "guidance.dropout.findings: expected a share below 1, got 1" in second


def test_a_weak_model_is_a_network_and_a_length():
    weak = "guidance={type: autoguidance, weak: {images: 64}}"
    sections = load_recipe("cxr/quickstart", [weak]).sections
    assert sections["guidance"]["weak"] == {"backbone": sections["backbone"], "images": 64}
    assert load_recipe("cxr/quickstart").weak is None
    with pytest.raises(RecipeError) as error:
        load_recipe("cxr/quickstart", ["guidance={type: none, weak: {backbone: {type: unett}}}"])
    said = "\n".join(error.value.problems)
    assert "guidance.weak: only autoguidance has a weak model; remove it" in said
    assert "guidance.weak.backbone.type" in said
    assert "needs 'images'" in said


def test_all_problems_are_named_at_once_with_line_and_remedy(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text(BROKEN)
    with pytest.raises(RecipeError) as error:
        load_recipe(file)
    said = error.value.problems
    for line, key, text in [
        (3, "data.type", "Did you mean 'simulated'?"),
        (4, "codec.patch", 'got "two"'),
        (4, "codec.schema", "comes from other components"),
        (5, "backbone.chanels", "Did you mean 'channels'?"),
        (5, "backbone.latent", "comes from other components"),
        (6, "objective.prediction", "Did you mean 'velocity'?"),
        (7, "sampler.steps", "4.5"),
        (8, "guidance.dropout", "share below 1"),
        (9, "train", "needs 'images'"),
        (10, "tarin", "Did you mean 'train'?"),
    ]:
        found = [p for p in said if p.startswith(f"{file}:{line}: {key}: ") and text in p]
        assert len(found) == 1, (key, said)
    assert any("'train'" in p or "train" in p for p in said)
    lines = [int(re.match(r".*?:(\d+): ", p).group(1)) for p in said]
    assert lines == sorted(lines)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.images", "expected KEY=VALUE"),
        ("train.imags=3", "Did you mean 'images'?"),
        ("train.images=many", 'got "many"'),
        ("name.first=3", "has no keys"),
        ("train.images=[", "not YAML"),
        ("codec={checkpoint: nowhere}", "nowhere"),
        ("codec={recipe: cxr/nothing}", "recipe"),
    ],
)
def test_a_bad_override_is_named(override, says):
    with pytest.raises(RecipeError, match=re.escape(says)):
        load_recipe("cxr/quickstart", [override])


def test_overrides_reach_nested_keys():
    recipe = load_recipe("cxr/quickstart", ["train.lr=1e-4", "data.size=[32, 32]"])
    assert recipe.sections["train"]["lr"] == 1e-4
    assert recipe.sections["data"]["size"] == [32, 32]
    assert recipe.digest != load_recipe("cxr/quickstart").digest


def test_formatting_does_not_change_the_digest(tmp_path):
    text = "".join(
        line for line in shipped()["cxr/quickstart"].open() if not line.startswith("#")
    ).replace("{type: pixels, patch: 2}", "\n  patch: 2\n  type: pixels")
    file = tmp_path / "same.yaml"
    file.write_text(text)
    assert load_recipe(file).digest == load_recipe("cxr/quickstart").digest


def test_a_codec_recipe_is_written_out_where_it_is_named():
    codec = load_recipe("cxr/findings-flow-unet-128").sections["codec"]
    assert codec["type"] == "autoencoder"
    assert codec["train"]["images"] == load_recipe("cxr/kl-f4").sections["codec"]["train"]["images"]
    changed = load_recipe("cxr/findings-flow-unet-128", ["codec.train.images=64"])
    assert changed.sections["codec"]["train"]["images"] == 64


def test_parts_of_different_domains_are_refused(monkeypatch):
    monkeypatch.setattr(find("sampler", "euler"), "domain", "tokens")
    with pytest.raises(RecipeError, match="do not go together"):
        load_recipe("cxr/quickstart", ["sampler.type=euler"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("codec={type: pixels}", "codec is continuous, backbone is tokens"),
        ("sampler={type: ab2}", "sampler is continuous"),
        ("guidance.type=classifier_free_zero", "guidance is continuous"),
        ("sampler={type: autoregressive}", "in any order, but not drawn so; use type: maskgit"),
        ("objective={type: next_token}", "one after the other.*use type: autoregressive"),
        ("backbone.causal=true", "comes from other components"),
    ],
)
def test_parts_of_tokens_go_together(override, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe("cxr/maskgit-64", [override])


@pytest.mark.parametrize("kind", sorted(PACKAGES))
def test_every_component_names_its_types(kind):
    for name in names(kind):
        for argument in arguments(find(kind, name)).values():
            assert argument.annotation is not None
            assert str(argument.annotation) != "typing.Any", f"{kind} {name}: {argument.name}"


def test_a_name_is_taken_once():
    names("sampler")
    with pytest.raises(ValueError, match="already registered"):
        register("sampler", "ab2")(type("Other", (), {}))
    with pytest.raises(ValueError, match="unknown kind"):
        register("smapler", "x")
