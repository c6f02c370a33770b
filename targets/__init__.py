"""Targets: classes of hardware, one TOML file each in `table/`. A user's own TOML file is a target too."""

from edgesdk.targets.target import Cpu, Emulation, Power, Target, load_target, target_names

__all__ = ["Cpu", "Emulation", "Power", "Target", "load_target", "target_names"]
