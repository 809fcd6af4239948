import subprocess
import sys

import pytest

import torchrec_mtl


@pytest.mark.parametrize("name", [n for n in torchrec_mtl.__all__ if n != "__version__"])
def test_every_public_name_is_there_and_carries_its_name(name):
    assert getattr(torchrec_mtl, name).__name__ == name


def test_lazy_names_and_all_agree():
    assert set(torchrec_mtl.__all__) == {*torchrec_mtl._PUBLIC, "__version__"}


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'HTLNett'"):
        _ = torchrec_mtl.HTLNett


def test_neither_the_package_nor_the_command_line_imports_torch():
    code = "import sys, torchrec_mtl, torchrec_mtl.cli; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
