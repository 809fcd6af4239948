"""What a new plug-in may be called."""

import re

import pytest

from torchrec_mtl.registry import BUILT_IN
from torchrec_mtl.scaffold.names import check_name

FORM = "write lower-case letters, digits, and single underscores, a letter first"


@pytest.mark.parametrize("name", ["x", "cross_stitch", "mmoe2", "a1_b2"])
def test_a_name_gives_all_others(name):
    names = check_name("head", name)
    assert names.package.isidentifier()
    assert names.class_name.isidentifier()
    assert names.package == f"mtl_{name}"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", FORM),
        ("CrossStitch", f"{FORM}, such as 'cross_stitch'"),
        ("cross-stitch", f"{FORM}, such as 'cross_stitch'"),
        ("a/../b", f"{FORM}, such as 'a_b'"),
        ("_x", f"{FORM}, such as 'x'"),
        ("a__b", f"{FORM}, such as 'a_b'"),
        ("x_", FORM),
        ("2x", FORM),
        ("straße", FORM),
        ("a\nb", FORM),
        ("a" * 51, "at most 50 characters, found 51"),
        ("class", "'class' is a word of Python"),
        ("match", "'match' is a word of Python"),
        ("null", "'null' is read as None in a YAML"),
        ("on", "'on' is read as True in a YAML"),
        ("off", "'off' is read as False in a YAML"),
        (
            "towers",
            "the class would be called Towers, as one that it is made with; choose another name, such as 'my_towers'",
        ),
        ("head_output", "would be called HeadOutput"),
        ("representation", "would be called Representation"),
        ("htlnet", "there is a head 'htlnet' already (torchrec_mtl.heads.htlnet:HTLNet)"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_name("head", name)


@pytest.mark.parametrize(
    ("kind", "name", "class_name"),
    [
        ("rule", "gradient", "GradientRule"),
        ("head", "config", "Config"),
        ("head", "positive_int", "PositiveInt"),
        ("bottom", "features", None),
        ("loss", "label_scale", None),
        ("rule", "towers", None),
    ],
)
def test_a_class_hides_nothing_that_the_skeleton_of_its_kind_needs(kind, name, class_name):
    if class_name is None:  # the suffix of the kind tells them apart
        assert check_name(kind, name).name == name
        return
    with pytest.raises(ValueError, match=f"the class would be called {class_name}, as one that it is made with"):
        check_name(kind, name)


def test_names_are_taken_within_a_kind():
    assert check_name("rule", "mmoe").name == "mmoe"
    for kind, known in BUILT_IN.items():
        for name in known:
            with pytest.raises(ValueError, match=f"there is a {kind} '{name}' already"):
                check_name(kind, name)


def test_a_package_that_is_there_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "mtl_mine").mkdir()
    (tmp_path / "mtl_mine" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="a package 'mtl_mine' can be imported already"):
        check_name("loss", "mine")
