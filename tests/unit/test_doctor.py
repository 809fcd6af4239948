"""Every broken pair that users report is named with the command that mends it, and nothing is imported to know it."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from torchrec_mtl import doctor
from torchrec_mtl.doctor import EnvironmentMismatchError, Finding, diagnose, installed_versions, render, require_healthy

COMPANIONS = {"torchx": "0.7.0", "torchmetrics": "1.0.3", "pyre-extensions": "0.0.32", "numpy": "2.4.6"}
CPU = {"python": "3.11.7", "torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0", **COMPANIONS}
CUDA = {"python": "3.11.7", "torch": "2.13.0+cu130", "torchrec": "1.8.0", "fbgemm-gpu": "1.8.0", **COMPANIONS}
UNINSTALL = "pip uninstall -y fbgemm-gpu fbgemm-gpu-cpu && "


def problems(versions: dict[str, str], level: str = "error") -> list[Finding]:
    return [finding for finding in diagnose(versions) if finding.level == level]


def without(versions: dict[str, str], *names: str) -> dict[str, str]:
    return {name: version for name, version in versions.items() if name not in names}


@pytest.mark.parametrize(("torch", "release"), [("2.10.0", "1.5.0"), ("2.12.1", "1.7.0"), ("2.14.1", "1.9.0")])
@pytest.mark.parametrize("healthy", [CPU, CUDA])
def test_pairs_that_work_are_ok(healthy: dict[str, str], torch: str, release: str) -> None:
    build = "fbgemm-gpu-cpu" if "fbgemm-gpu-cpu" in healthy else "fbgemm-gpu"
    local = healthy["torch"].partition("+")[2]
    assert not problems(healthy)
    assert not problems(healthy | {"torch": f"{torch}+{local}", "torchrec": release, build: release})


def test_the_stub_is_no_second_fbgemm() -> None:
    assert all(finding.level == "ok" for finding in diagnose(CPU | {"fbgemm-gpu": "0"}))


def test_this_environment_is_healthy() -> None:
    require_healthy()
    assert {"python", "torch", "torchrec"} <= set(installed_versions())


def test_a_torch_mismatch_names_the_pair_to_install() -> None:
    found = problems(CPU | {"torch": "2.12.1+cpu"})
    assert {finding.subject for finding in found} == {"torch + fbgemm"}
    assert found[0].message == (
        "fbgemm 1.8.0 is built for torch 2.13, found torch 2.12.1+cpu: install torch 2.13, torchrec 1.8, fbgemm 1.8"
    )
    assert found[0].remedy == (
        UNINSTALL + "pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0 torchx==0.7.0 torchmetrics==1.0.3 "
        "pyre-extensions==0.0.32 numpy tensordict tqdm && pip install --no-deps torchrec==1.8.0"
    )


def test_a_torch_mismatch_on_cuda_installs_the_cuda_build() -> None:
    (found,) = problems(CUDA | {"torch": "2.14.0+cu130"})
    assert found.remedy == (
        UNINSTALL + "pip install torch==2.13.0 fbgemm-gpu==1.8.0 torchrec==1.8.0 torchx==0.7.0 torchmetrics==1.0.3 "
        "pyre-extensions==0.0.32 numpy"
    )


def test_a_torch_that_fits_keeps_its_patch_release() -> None:
    (found,) = problems(CPU | {"torch": "2.13.1+cpu", "torchrec": "1.9.2"})
    assert "torch==2.13.1 " in str(found.remedy)


def test_an_unknown_torch_beside_a_known_fbgemm_is_a_mismatch() -> None:
    (found,) = problems(CPU | {"torch": "2.15.0+cpu"})
    assert "built for torch 2.13, found torch 2.15.0+cpu" in found.message


def test_an_unknown_fbgemm_beside_a_known_torch_is_a_mismatch() -> None:
    (found,) = problems(CPU | {"fbgemm-gpu-cpu": "1.6.0", "torchrec": "1.6.1"})
    assert "torch 2.13.0+cpu needs fbgemm 1.8, found 1.6.0" in found.message


def test_a_pair_nobody_tried_is_only_a_warning() -> None:
    untried = CPU | {"torch": "2.11.0+cpu", "fbgemm-gpu-cpu": "1.6.0", "torchrec": "1.6.1"}
    assert not problems(untried)
    assert "untried; known to work: 2.10 with 1.5" in problems(untried, "warning")[0].message


def test_torchrec_of_another_minor_version_is_an_error() -> None:
    (found,) = problems(CPU | {"torchrec": "1.9.2"})
    assert found.subject == "torchrec + fbgemm"
    assert "torchrec 1.9.2 needs fbgemm 1.9, found 1.8.0" in found.message
    assert str(found.remedy).endswith("torchrec==1.8.0")


def test_both_builds_at_once_are_an_error() -> None:
    (found,) = problems(CPU | {"fbgemm-gpu": "1.8.0"})
    assert "fbgemm-gpu-cpu 1.8.0 and fbgemm-gpu 1.8.0 (CUDA) are both installed" in found.message
    assert "fbgemm-gpu-cpu==1.8.0" in str(found.remedy)
    (found,) = problems(CUDA | {"fbgemm-gpu-cpu": "1.8.0"})
    assert " fbgemm-gpu==1.8.0 " in str(found.remedy)


@pytest.mark.parametrize("stub", [{}, {"fbgemm-gpu": "0"}])
def test_a_missing_fbgemm_is_an_error(stub: dict[str, str]) -> None:
    (found,) = problems(without(CPU, "fbgemm-gpu-cpu") | stub)
    assert "not installed" in found.message
    assert ("only the stand-in" in found.message) == bool(stub)
    assert "fbgemm-gpu-cpu==1.8.0" in str(found.remedy)


def test_a_cpu_fbgemm_under_a_cuda_torch_is_a_warning() -> None:
    cuda_torch = CPU | {"torch": "2.13.0+cu130"}
    bare_torch = CPU | {"torch": "2.13.0", "nvidia-cublas": "13.0.0.19"}
    for versions in (cuda_torch, bare_torch):
        assert not problems(versions)
        (found,) = problems(versions, "warning")
        assert "tables stay on the CPU" in found.message
        assert " fbgemm-gpu==1.8.0 " in str(found.remedy)
    assert not problems(CPU | {"torch": "2.13.0"}, "warning")


def test_a_cuda_fbgemm_under_a_cpu_torch_is_an_error() -> None:
    (found,) = problems(CUDA | {"torch": "2.13.0+cpu"})
    assert "fbgemm-gpu 1.8.0 needs CUDA" in found.message
    assert "fbgemm-gpu-cpu==1.8.0" in str(found.remedy)


@pytest.mark.parametrize("version", ["3.10.12", "3.14.0", "2.7.18"])
def test_an_unsupported_python_is_an_error(version: str) -> None:
    (found,) = problems(CPU | {"python": version})
    assert f"found {version}, torchrec_mtl needs 3.11 to 3.13" in found.message


@pytest.mark.parametrize("name", ["torch", "torchrec", "torchx", "torchmetrics", "pyre-extensions", "numpy"])
def test_a_missing_package_is_an_error(name: str) -> None:
    (found,) = problems(without(CPU, name))
    assert (found.subject, found.message) == (name, "not installed")
    assert name in str(found.remedy)


def test_another_torchmetrics_is_a_warning() -> None:
    (found,) = problems(CPU | {"torchmetrics": "1.4.0"}, "warning")
    assert found.remedy == "pip install torchmetrics==1.0.3"


def test_an_empty_environment_gets_one_command() -> None:
    found = problems({"python": "3.11.7"})
    assert len({finding.remedy for finding in found if finding.subject in ("torch", "torchrec", "fbgemm")}) == 1


def test_require_healthy_raises_for_errors_alone() -> None:
    require_healthy(CPU | {"torch": "2.13.0+cu130"})
    with pytest.raises(EnvironmentMismatchError) as raised:
        require_healthy(CPU | {"torch": "2.12.0+cpu"})
    assert isinstance(raised.value, RuntimeError)
    assert "built for torch 2.13, found torch 2.12.0+cpu" in str(raised.value)
    assert UNINSTALL + "pip install torch==2.13.0 fbgemm-gpu-cpu==1.8.0" in str(raised.value)


def test_render_is_a_plain_table_with_each_command_once() -> None:
    text = render(diagnose(CPU | {"torch": "2.15.0+cpu", "torchrec": "1.9.0"}))
    lines = text.splitlines()
    assert lines[0] == "ok       python             3.11.7"
    assert text.count("--no-deps") == 1
    assert UNINSTALL + "pip install -r requirements/cpu.txt" in text
    assert UNINSTALL + "pip install -r requirements/cuda.txt" in render(problems(CUDA | {"torchrec": "1.9.0"}))
    assert text.isascii()
    assert "to mend it" not in render(diagnose(CPU))
    assert render([]) == ""


def test_render_mends_errors_before_warnings() -> None:
    text = render(diagnose(CPU | {"torch": "2.14.0+cu130"}))
    assert "tables stay on the CPU" in text
    assert " fbgemm-gpu==" not in text


def test_the_check_takes_less_than_fifty_milliseconds() -> None:
    def once() -> float:
        start = time.perf_counter()
        require_healthy()
        return time.perf_counter() - start

    assert min(once() for _ in range(5)) < 0.05


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_mismatch_on_the_path_is_found_without_imports(tmp_path: Path, has_folder: bool) -> None:
    versions = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm_gpu-cpu": "1.7.0", "fbgemm_gpu": "0"}
    for name, version in versions.items():
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if has_folder:
        (tmp_path / "fbgemm_gpu").mkdir()
        (tmp_path / "fbgemm_gpu" / "__init__.py").write_text("raise ImportError('imported')")
    script = (
        "import importlib.util, sys\n"
        f"sys.path.insert(0, {str(tmp_path)!r})\n"
        f"spec = importlib.util.spec_from_file_location('doctor', {doctor.__file__!r})\n"
        "doctor = sys.modules['doctor'] = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(doctor)\n"
        "print(doctor.render(doctor.diagnose()))\n"
        "assert not {'torch', 'torchrec', 'fbgemm_gpu', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ("fbgemm 1.7.0 is built for torch 2.12" in done.stdout) == has_folder
    assert ("its folder fbgemm_gpu is gone (fbgemm-gpu 0 is only the stand-in)" in done.stdout) != has_folder
