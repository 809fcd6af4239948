"""Names of plug-ins resolve to classes, and mistakes are answered with the remedy."""

import subprocess
import sys
from types import ModuleType

import pytest

from torchrec_mtl import registry
from torchrec_mtl.bottoms.base import Bottom
from torchrec_mtl.gradients.base import GradientRule, RuleConfig
from torchrec_mtl.heads.base import Head
from torchrec_mtl.heads.htlnet import HTLNet
from torchrec_mtl.losses.base import Loss
from torchrec_mtl.registry import BUILT_IN, names, resolve

BASES = {"head": Head, "bottom": Bottom, "loss": Loss, "rule": GradientRule}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, known in BUILT_IN.items() for name in known])
def test_every_built_in_resolves_to_a_class_of_its_kind(kind, name):
    found = resolve(kind, name)
    assert issubclass(found, BASES[kind])
    assert found.Config.model_fields["type"].default == name  # `{type: name}` is what the class says of itself
    if kind == "rule":
        assert issubclass(found.Config, RuleConfig)
        assert found.needs in {"nothing", "losses", "gramian"}
        assert found.groups in {"all", "table"}


def test_every_built_in_is_listed_with_a_line():
    for kind, known in BUILT_IN.items():
        listed = dict(registry.listing(kind))
        assert all(listed[name].endswith(".") for name in known)


def test_names_are_known_without_torch():
    code = "import sys, torchrec_mtl.registry as r; r.listing('rule'); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"False"


def test_dotted_path_resolves():
    assert resolve("head", "torchrec_mtl.heads.htlnet:HTLNet") is HTLNet


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("htlnt", "unknown head 'htlnt'. Did you mean 'htlnet'?"),
        (
            "zzz",
            "Known: adatt, aitm, dbmtl, dmmp, escm2, esmm, home, htlnet, mmoe, ncs4cvr, pepnet, ple, shared_bottom",
        ),
        ("torchrec_mtl.nowhere:Head", "cannot import head 'torchrec_mtl.nowhere:Head': No module named"),
        ("torchrec_mtl.heads.htlnet:HTLNt", "has no head 'HTLNt'. Did you mean 'HTLNet'?"),
        ("torchrec_mtl.heads.htlnet.HTLNet", "written package.module:Class"),
        (":HTLNet", "names no head; write package.module:Class"),
        ("math:pi", "'math:pi' is no head"),
        ("collections:OrderedDict", "must be a class with a nested Config"),
        ("torchrec_mtl.losses.binary:Focal", "'torchrec_mtl.losses.binary:Focal' is no head"),
        ("torchrec_mtl.gradients.htlnet:HTLNetRule", "is no head"),
    ],
)
def test_mistakes_are_answered_with_what_is_wrong(reference, message):
    with pytest.raises(ValueError, match=message):
        resolve("head", reference)


def test_a_name_of_another_kind_is_unknown():
    with pytest.raises(ValueError, match="unknown loss 'htlnet'"):
        resolve("loss", "htlnet")


def test_installed_plug_in_is_found_by_its_name_and_hides_no_built_in(monkeypatch):
    module = ModuleType("plugin_of_a_test")
    module.Mine = type("Mine", (HTLNet,), {})
    monkeypatch.setitem(sys.modules, "plugin_of_a_test", module)
    installed = dict.fromkeys(("mine", "htlnet"), "plugin_of_a_test:Mine")
    monkeypatch.setattr(registry, "_installed", lambda group: installed)
    assert resolve("head", "mine") is module.Mine
    assert resolve("head", "htlnet") is HTLNet
    assert set(names("head")) == {*BUILT_IN["head"], "mine"}
