"""Do the installed versions fit together? Answered from package metadata, before anything is imported.

A torch that its fbgemm was not built for fails at import with "Could not load this library", "undefined symbol", or
"no attribute jagged_2d_to_dense", none of which names the cause. Nothing here imports torch, torchrec, or fbgemm_gpu.
"""

import platform
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Final, Literal, NamedTuple

Level = Literal["ok", "warning", "error"]


class _Pair(NamedTuple):
    torch: str
    torchrec: str  # fbgemm shares this number


# Minor versions whose binaries fit: an fbgemm wheel is built for one minor version of torch.
_PAIRS: Final = (_Pair("2.10", "1.5"), _Pair("2.12", "1.7"), _Pair("2.13", "1.8"), _Pair("2.14", "1.9"))
_TESTED: Final = _Pair("2.13", "1.8")  # what torchrec_mtl requires, so what every remedy installs
_PYTHONS: Final = ("3.11", "3.12", "3.13")

_RELEASE: Final = f"{_TESTED.torchrec}.0"
_ADVICE: Final = f"install torch {_TESTED.torch}, torchrec {_TESTED.torchrec}, fbgemm {_TESTED.torchrec}"

_CPU: Final = "fbgemm-gpu-cpu"
_CUDA: Final = "fbgemm-gpu"
_STUB_VERSION: Final = "0"  # requirements/fbgemm-gpu-stub: an empty fbgemm-gpu that stands for the CPU build
_CUBLAS: Final = ("nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cublas-cu13")  # what a CUDA torch brings along
_PINS: Final = {"torchx": "0.7.0", "torchmetrics": "1.0.3", "pyre-extensions": "0.0.32", "numpy": None}
_DISTRIBUTIONS: Final = ("torch", "torchrec", _CPU, _CUDA, *_PINS, *_CUBLAS)

_UNINSTALL: Final = f"pip uninstall -y {_CUDA} {_CPU}"  # both: they own one folder, removing one breaks the other


class EnvironmentMismatchError(RuntimeError):
    """The installed versions cannot work together."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: Whether it works, may disappoint, or cannot work.
        subject: What was looked at: a distribution or "torch + fbgemm".
        message: What was found and, unless it is ok, what is wrong with it.
        remedy: The shell command that mends it; None where there is nothing to mend or no command does.
    """

    level: Level
    subject: str
    message: str
    remedy: str | None = None


def diagnose(versions: Mapping[str, str] | None = None) -> list[Finding]:
    """Checks the installed versions.

    Args:
        versions: The version of each installed distribution by name, and of "python"; a name left out is not
            installed (Python: the running one). None: what `installed_versions` finds.

    Returns:
        One finding or more for each thing looked at.

    Example:
        >>> findings = diagnose({"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.7.0"})
        >>> next(finding.message for finding in findings if finding.subject == "torch + fbgemm")
        'fbgemm 1.7.0 is built for torch 2.12, found torch 2.13.0+cpu: install torch 2.13, torchrec 1.8, fbgemm 1.8'
    """
    found = installed_versions() if versions is None else versions
    return [
        _check_python(found.get("python", platform.python_version())),
        *_check_core(found),
        *_check_fbgemm(found),
        *_check_pairs(found),
        *_check_build(found),
        *_check_companions(found),
    ]


def require_healthy(versions: Mapping[str, str] | None = None) -> None:
    """Raises where the installed versions cannot work; warnings pass. Takes milliseconds: call it before the imports.

    Args:
        versions: As for `diagnose`.

    Raises:
        EnvironmentMismatchError: With every error's message and the commands that mend them.
    """
    errors = [finding for finding in diagnose(versions) if finding.level == "error"]
    if errors:
        lines = [f"  {finding.subject}: {finding.message}" for finding in errors]
        raise EnvironmentMismatchError("\n".join(["this environment cannot work:", *lines, *_remedies(errors)]))


def render(findings: Sequence[Finding]) -> str:
    """Lays findings out as a plain text table, the commands that mend them below it.

    Args:
        findings: What `diagnose` returned.

    Returns:
        Lines without colour or trailing newline.
    """
    width = max((len(finding.subject) for finding in findings), default=0)
    lines = [f"{finding.level:<7}  {finding.subject:<{width}}  {finding.message}" for finding in findings]
    return "\n".join([*lines, *_remedies(findings)])


def installed_versions() -> dict[str, str]:
    """Reads the versions that `diagnose` looks at from the metadata of this environment.

    Returns:
        Version by distribution name, and "python". An fbgemm whose files are gone (uninstalling one of its two builds
        takes the folder of the other) is left out.
    """
    versions = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        try:
            found = distribution(name)
        except PackageNotFoundError:
            continue
        is_build = name == _CPU or (name == _CUDA and found.version != _STUB_VERSION)
        if not is_build or Path(str(found.locate_file("fbgemm_gpu/__init__.py"))).is_file():
            versions[name] = found.version
    return versions


def _check_python(version: str) -> Finding:
    supported = f"{_PYTHONS[0]} to {_PYTHONS[-1]}"
    if _minor(version) in _PYTHONS:
        return Finding("ok", "python", version)
    return Finding("error", "python", f"found {version}, torchrec_mtl needs {supported}: make an environment of one")


def _check_core(found: Mapping[str, str]) -> Iterator[Finding]:
    for name in ("torch", "torchrec"):
        if name in found:
            yield Finding("ok", name, found[name])
        else:
            yield Finding("error", name, "not installed", _reinstall(found))


def _check_fbgemm(found: Mapping[str, str]) -> Iterator[Finding]:
    builds = _fbgemm_builds(found)
    if not builds:
        stub = " (fbgemm-gpu 0 is only the stand-in)" if _CUDA in found else ""
        message = f"not installed, or its folder fbgemm_gpu is gone{stub}: TorchRec cannot be imported"
        yield Finding("error", "fbgemm", message, _reinstall(found))
    elif len(builds) == 1:
        (name,) = builds
        yield Finding("ok", name, builds[name])
    else:
        message = (
            f"{_CPU} {builds[_CPU]} and {_CUDA} {builds[_CUDA]} (CUDA) are both installed and overwrite each other's "
            "folder fbgemm_gpu: keep one"
        )
        yield Finding("error", "fbgemm", message, _reinstall(found))


def _check_pairs(found: Mapping[str, str]) -> Iterator[Finding]:
    torch, torchrec = found.get("torch"), found.get("torchrec")
    for fbgemm in sorted(set(_fbgemm_builds(found).values())):
        if torch is not None:
            yield _check_torch_pair(torch, fbgemm, found)
        if torchrec is not None and _minor(torchrec) != _minor(fbgemm):
            message = f"torchrec {torchrec} needs fbgemm {_minor(torchrec)}, found {fbgemm}: {_ADVICE}"
            yield Finding("error", "torchrec + fbgemm", message, _reinstall(found))


def _check_torch_pair(torch: str, fbgemm: str, found: Mapping[str, str]) -> Finding:
    subject = "torch + fbgemm"
    built_for = next((pair.torch for pair in _PAIRS if pair.torchrec == _minor(fbgemm)), None)
    if built_for == _minor(torch):
        return Finding("ok", subject, f"{torch} with {fbgemm}")
    if built_for is not None:
        message = f"fbgemm {fbgemm} is built for torch {built_for}, found torch {torch}: {_ADVICE}"
        return Finding("error", subject, message, _reinstall(found))
    partner = next((pair.torchrec for pair in _PAIRS if pair.torch == _minor(torch)), None)
    if partner is not None:
        message = f"torch {torch} needs fbgemm {partner}, found {fbgemm}: {_ADVICE}"
        return Finding("error", subject, message, _reinstall(found))
    known = ", ".join(f"{pair.torch} with {pair.torchrec}" for pair in _PAIRS)
    return Finding("warning", subject, f"torch {torch} with fbgemm {fbgemm} is untried; known to work: {known}")


def _check_build(found: Mapping[str, str]) -> Iterator[Finding]:
    builds = _fbgemm_builds(found)
    if len(builds) != 1 or "torch" not in found:
        return
    is_cuda = _is_cuda_torch(found)
    if is_cuda and _CPU in builds:
        message = f"torch {found['torch']} is a CUDA build, {_CPU} has no GPU kernels: tables stay on the CPU"
        yield Finding("warning", "fbgemm build", message, _cuda_command(found))
    elif _CUDA in builds and is_cuda is False:
        message = f"torch {found['torch']} is a CPU build, {_CUDA} {builds[_CUDA]} needs CUDA: it cannot be loaded"
        yield Finding("error", "fbgemm build", message, _reinstall(found))


def _check_companions(found: Mapping[str, str]) -> Iterator[Finding]:
    for name, pin in _PINS.items():
        requirement = name if pin is None else f"{name}=={pin}"
        if name not in found:
            yield Finding("error", name, "not installed", f"pip install {requirement}")
        elif pin is not None and _minor(found[name]) != _minor(pin):
            message = f"found {found[name]}, torchrec_mtl is tested with {pin}"
            yield Finding("warning", name, message, f"pip install {requirement}")
        else:
            yield Finding("ok", name, found[name])


def _fbgemm_builds(found: Mapping[str, str]) -> dict[str, str]:
    builds = {name: found[name] for name in (_CPU, _CUDA) if name in found}
    if builds.get(_CUDA) == _STUB_VERSION:
        del builds[_CUDA]
    return builds


def _is_cuda_torch(found: Mapping[str, str]) -> bool | None:
    """Whether torch is a CUDA build; None where the metadata does not tell."""
    local = found.get("torch", "").partition("+")[2]
    if local.startswith("cu"):
        return True
    if local == "cpu":
        return False
    return True if any(name in found for name in _CUBLAS) else None


def _reinstall(found: Mapping[str, str]) -> str:
    builds, is_cuda = _fbgemm_builds(found), _is_cuda_torch(found)
    wants_cuda = _CUDA in builds if len(builds) == 1 and is_cuda is None else bool(is_cuda)
    if list(builds) == [_CPU]:
        wants_cuda = False  # a CPU fbgemm beside a CUDA torch was somebody's choice: a warning says what it costs
    return _cuda_command(found) if wants_cuda else _cpu_command(found)


def _cuda_command(found: Mapping[str, str]) -> str:
    return f"{_UNINSTALL} && pip install {_torch_pin(found)} {_CUDA}=={_RELEASE} torchrec=={_RELEASE} {_pins()}"


def _cpu_command(found: Mapping[str, str]) -> str:
    """TorchRec without its dependencies, for they name the CUDA build; the others are given by hand."""
    return (
        f"{_UNINSTALL} && pip install {_torch_pin(found)} {_CPU}=={_RELEASE} {_pins()} tensordict tqdm"
        f" && pip install --no-deps torchrec=={_RELEASE}"
    )


def _torch_pin(found: Mapping[str, str]) -> str:
    public = found.get("torch", "").partition("+")[0]
    return f"torch=={public if _minor(public) == _TESTED.torch else _TESTED.torch + '.0'}"


def _pins() -> str:
    return " ".join(name if pin is None else f"{name}=={pin}" for name, pin in _PINS.items())


def _remedies(findings: Iterable[Finding]) -> list[str]:
    """What to run: against the errors first, then, on the next call, against the warnings."""
    with_remedy = [finding for finding in findings if finding.remedy is not None]
    errors = [finding for finding in with_remedy if finding.level == "error"]
    commands = list(dict.fromkeys(str(finding.remedy) for finding in errors or with_remedy))
    if not commands:
        return []
    lines = ["", "to mend it:", *(f"  {command}" for command in commands)]
    device = next(
        (name for name, build in (("cpu", _CPU), ("cuda", _CUDA)) if f" {build}==" in " ".join(commands)), None
    )
    if device is not None:
        lines.append("or, in a checkout of torchrec_mtl (or delete the environment's folder, then `make setup`):")
        lines.append(f"  {_UNINSTALL} && pip install -r requirements/{device}.txt")
    return lines


def _minor(version: str) -> str:
    match = re.match(r"\d+\.\d+", version)
    return match[0] if match else version
