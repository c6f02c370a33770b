"""What an emulated board says it is: `/proc/cpuinfo`, `/sys`, machine-id, host name; made from its target.

The inference runtimes read these files to choose their kernels; with the files of the x86 machine ONNX Runtime and
LiteRT die of SIGSEGV under qemu-user.
"""

from __future__ import annotations

from edgesdk.files import sha256_bytes
from edgesdk.targets.target import Emulation, Target

# What Linux calls the features of a Cortex-A76, in its order; the second name is the feature in the target's table
# (None: every core has it; "v8.2": comes with the architecture that dotprod implies).
_FEATURES: tuple[tuple[str, str | None], ...] = (
    ("fp", None),
    ("asimd", None),
    ("evtstrm", None),
    ("aes", "v8.2"),
    ("pmull", "v8.2"),
    ("sha1", "v8.2"),
    ("sha2", "v8.2"),
    ("crc32", None),
    ("atomics", "v8.2"),
    ("fphp", "fp16"),
    ("asimdhp", "fp16"),
    ("cpuid", None),
    ("asimdrdm", "v8.2"),
    ("lrcpc", "v8.2"),
    ("dcpop", "v8.2"),
    ("asimddp", "dotprod"),
    ("i8mm", "i8mm"),
)
# part: variant, revision, as the boards report them
_STEPPING = {"0xd0b": (4, 1), "0xd08": (0, 3), "0xd03": (0, 4), "0xd07": (1, 1)}
_TEMPERATURE = 48312  # thousandths of a degree Celsius, constant: a plausible idle board


def serial_of(name: str) -> str:
    """16 hexadecimal digits, the same for a board of the same name."""
    return sha256_bytes(f"edgesdk emulated board {name}".encode())[:16]


def features_of(target: Target) -> list[str]:
    """Names for the `Features` line of `/proc/cpuinfo`."""
    present = {None, *target.cpu.features}
    if "dotprod" in present:
        present.add("v8.2")
    return [name for name, needs in _FEATURES if needs in present]


def device_files(target: Target, emulation: Emulation, name: str) -> dict[str, bytes]:
    """Files of the board's device layer by path relative to its root; `qemu/cpuinfo` is bound over `/proc/cpuinfo`."""
    serial = serial_of(name)
    variant, revision = _STEPPING.get(emulation.part, (0, 1))
    machine_id = sha256_bytes(serial.encode())[:32]
    texts = {
        "qemu/cpuinfo": _cpuinfo(target, emulation, serial, variant, revision),
        "etc/hostname": name,
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}",
        "etc/machine-id": machine_id,
        "sys/firmware/devicetree/base/model": emulation.board_model + "\0",
        "sys/firmware/devicetree/base/serial-number": serial + "\0",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal",
        "sys/class/thermal/thermal_zone0/temp": str(_TEMPERATURE),
    }
    midr = 0x41 << 24 | variant << 20 | 0xF << 16 | int(emulation.part, 16) << 4 | revision
    if "tensorrt" in target.runtimes:  # its version is read off the name
        texts["usr/lib/aarch64-linux-gnu/libnvinfer.so.10.3.0"] = "stand-in"
    for path, text in _cpu_tree(target, midr).items():
        texts[f"sys/devices/system/cpu/{path}"] = text
    return {path: (text if text.endswith("\0") else text + "\n").encode() for path, text in texts.items()}


def _cpuinfo(target: Target, emulation: Emulation, serial: str, variant: int, revision: int) -> str:
    lines = []
    for core in range(target.cpu.cores):
        lines += [
            f"processor\t: {core}",
            "BogoMIPS\t: 108.00",
            f"Features\t: {' '.join(features_of(target))}",
            "CPU implementer\t: 0x41",
            "CPU architecture: 8",
            f"CPU variant\t: {variant:#x}",
            f"CPU part\t: {emulation.part}",
            f"CPU revision\t: {revision}",
            "",
        ]
    lines += [f"Serial\t\t: {serial}", f"Model\t\t: {emulation.board_model}"]
    return "\n".join(lines)


def _cpu_tree(target: Target, midr: int) -> dict[str, str]:
    """`/sys/devices/system/cpu`: frequencies in kHz, cache sizes in KiB."""
    everyone = f"0-{target.cpu.cores - 1}" if target.cpu.cores > 1 else "0"
    clock = str(target.cpu.clock_mhz * 1000)
    tree = {"possible": everyone, "present": everyone, "online": everyone, "kernel_max": "255"}
    for core in range(target.cpu.cores):
        one = {
            "cpufreq/cpuinfo_max_freq": clock,
            "cpufreq/cpuinfo_min_freq": "600000",
            "cpufreq/scaling_cur_freq": clock,
            "cpufreq/scaling_governor": "performance",
            "cpufreq/scaling_max_freq": clock,
            "cpufreq/scaling_min_freq": "600000",
            "regs/identification/midr_el1": f"0x{midr:016x}",
            "topology/core_id": str(core),
            "topology/core_siblings_list": everyone,
            "topology/physical_package_id": "0",
            "topology/thread_siblings_list": str(core),
            "cache/index0/level": "1",
            "cache/index0/type": "Data",
            "cache/index0/size": f"{target.cpu.l1d_kb}K",
            "cache/index1/level": "2",
            "cache/index1/type": "Unified",
            "cache/index1/size": f"{target.cpu.l2_kb}K",
        }
        tree |= {f"cpu{core}/{path}": text for path, text in one.items()}
    return tree
