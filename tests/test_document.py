import pytest
from hypothesis import given
from hypothesis import strategies as st

from medgen.document import dump_yaml, read_yaml
from medgen.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("40_000_000", 40_000_000),
        ("no", "no"),
        ("1:30", "1:30"),
        ("true", True),
        ("null", None),
        ("-.5", -0.5),
        ("'12'", "12"),
        ("[64, 64]", [64, 64]),
        ("0o17", "0o17"),
        ("2026-11-22", "2026-11-22"),
    ],
)
def test_scalars_are_yaml_1_2(text, value):
    assert read_yaml(f"key: {text}", "f").value == {"key": value}


def test_places_name_file_and_line():
    document = read_yaml("a: 1\nb:\n  c:\n    - 1\n    - 2\n", "r.yaml")
    assert document.place(("b", "c")) == "r.yaml:3"
    assert document.place(("b", "c", 1)) == "r.yaml:5"
    assert document.place(("b", "missing")) == "r.yaml:2"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "r.yaml:2: 'a' is written twice"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system ['true']", "tags"),
        ("a: !mine 1", "tags"),
        ("a: [1", "r.yaml:1: this is not YAML"),
    ],
)
def test_what_is_refused(text, says):
    with pytest.raises(RecipeError, match=r"(?s).*") as error:
        read_yaml(text, "r.yaml")
    assert says in str(error.value)


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", categories=["L", "N", "P", "Zs"]), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), plain, max_size=4))
def test_what_is_written_reads_back_equal(value):
    assert (read_yaml(dump_yaml(value), "f").value or {}) == value
