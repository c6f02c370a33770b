"""Read targets from `table/*.toml` or from a user's own file (format `edgesdk.target`, version 1)."""

from __future__ import annotations

import difflib
import reprlib
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgesdk.errors import ConfigError

FORMAT, VERSION = "edgesdk.target", 1


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cpu(_Model):
    """`model` is the compiler's name of the core (`native` on the host); sizes in KiB, clock in MHz."""

    model: str
    cores: int
    clock_mhz: int
    features: tuple[str, ...]
    l1d_kb: int
    l2_kb: int


class Power(_Model):
    """Where energy is read (`source`) and what it covers (`boundary`)."""

    source: str
    boundary: str


class Emulation(_Model):
    """CPU name for qemu-user, CPU name for llvm-mca, `CPU part` and board model of the emulated `/proc` and `/sys`."""

    qemu_cpu: str
    mca_cpu: str
    part: str
    board_model: str


class Target(_Model):
    """A class of hardware. `converters` in order of preference; `missing` says what this target could run and
    EdgeSDK does not build yet."""

    format: Literal["edgesdk.target"]
    version: Literal[1]
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9./-]*$")
    aliases: tuple[str, ...] = ()
    description: str = ""
    triple: Literal["aarch64-linux-gnu", "x86_64-linux-gnu"]
    cpu: Cpu
    ram_mb: tuple[int, ...] = ()
    runtimes: dict[str, str]
    converters: tuple[Literal["onnx", "tflite", "neon", "neon-fp16", "tensorrt"], ...] = Field(min_length=1)
    missing: dict[str, str] = {}
    onnx_opset_max: int = Field(ge=21)
    schemes: tuple[str, ...]
    sparse_block: tuple[int, int]
    power: Power
    throttle: str = ""
    emulate: Emulation | None = None

    @property
    def short(self) -> str:
        """The name as people type it: the first alias, or the name itself."""
        return self.aliases[0] if self.aliases and self.name != "host" else self.name


@cache
def _table() -> dict[str, Target]:
    targets: dict[str, Target] = {}
    for file in sorted(files("edgesdk.targets").joinpath("table").iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".toml"):
            target = _parse(file.read_text(), file.name)
            for name in (target.name, *target.aliases):
                targets[name] = target
    return targets


def target_names() -> list[str]:
    """Names and aliases of all targets in the table."""
    return sorted(_table())


def load_target(name: str) -> Target:
    """A target by name, alias, or path of a TOML file (it ends with `.toml`).

    Raises:
        ConfigError: no such target or file, or a file that is not a valid target.
    """
    if name.endswith(".toml"):
        try:
            return _parse(Path(name).read_text(), name)
        except OSError as problem:
            raise ConfigError(f"target file {name[:200]}: {problem.strerror}") from problem
        except ValueError as problem:
            raise ConfigError(f"target file {name[:200]}: not UTF-8 text, or not a path") from problem
    if name in _table():
        return _table()[name]
    near = difflib.get_close_matches(name, target_names(), 1)
    hint = f"--target {near[0]}" if near else "one of " + ", ".join(target_names()) + ", or the path of a .toml file"
    raise ConfigError(f"unknown target {name!r}", hint)


def _parse(text: str, where: str) -> Target:
    try:
        return Target.model_validate(tomllib.loads(text))
    except (tomllib.TOMLDecodeError, RecursionError) as problem:
        raise ConfigError(f"{where}: not TOML: {problem}") from problem
    except ValidationError as problem:
        first = problem.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(first["loc"][-1]), Target.model_fields, 1)
            hint = f"did you mean {near[0]!r}?" if near else "known keys: " + ", ".join(Target.model_fields)
            raise ConfigError(f"{where}: unknown key {key!r}", hint) from problem
        raise ConfigError(f"{where}: {key}: {first['msg']}, found {reprlib.repr(first.get('input'))}") from problem
