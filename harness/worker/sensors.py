"""Power sensors of the board: found by what the kernel shows, never by a number that changes from boot to boot."""

import errno
import glob
import os
import shutil
import time
from typing import Any

from edgesdk.harness.worker import rails as parsers
from edgesdk.harness.worker.readers import (
    FileSensor,
    PmicSensor,
    Sensor,
    TegrastatsSensor,
    output_of,
    product,
    whole,
)
from edgesdk.harness.worker.system import SYS, read_text

SYSFS = "EDGESDK_SYSFS"
EXTRA_PATH = ("/usr/bin", "/usr/sbin", "/opt/vc/bin")
INA2XX = ("ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina234", "ina238", "ina260", "ina2xx")
NO_CHANNEL = ("", "NC", "sum of shunt voltages")


def sysfs_root() -> str:
    """/sys, or what EDGESDK_SYSFS names: a recording that is replayed."""
    return os.environ.get(SYSFS) or SYS


def command_path(name: str) -> "str | None":
    """Where a command is; shells that are not for login often lack half of PATH."""
    folders = os.environ.get("PATH", "").split(os.pathsep) + list(EXTRA_PATH)
    return shutil.which(name, path=os.pathsep.join(folder for folder in folders if folder))


def discover() -> "tuple[Sensor | None, str]":
    """The sensor with the best view of this board, or None and why there is none."""
    notes = []
    for find in (_jetson_hwmon, _jetson_iio, _ina2xx, _pmic, _rapl, _tegrastats):
        sensor, note = find()
        if sensor is not None:
            return sensor, ""
        if note:
            notes.append(note)
    return None, "no power sensor: " + ("; ".join(notes) or "no INA3221, INA238 or INA2xx, no PMIC, no RAPL")


def describe() -> "dict[str, Any]":
    """What `discover` finds, as plain data: for the facts of the board."""
    sensor, reason = discover()
    if sensor is None:
        return {"sensor": None, "reason": reason}
    try:
        return dict(sensor.describe(), reason="")
    finally:
        sensor.close()


def _chips(driver: str) -> "list[str]":
    """hwmon folders of a chip, by its driver, or by its name where the bus is not shown."""
    root = sysfs_root()
    found = sorted(glob.glob(os.path.join(root, "bus/i2c/drivers", driver, "*-*/hwmon/hwmon*")))
    if found:
        return found
    folders = sorted(glob.glob(os.path.join(root, "class/hwmon/hwmon*")))
    return [folder for folder in folders if read_text(os.path.join(folder, "name")) == driver]


def _readable(path: str) -> "tuple[bool, bool]":
    """(it gives a number, it exists but may not be read)."""
    try:
        with open(path, "rb") as stream:
            stream.read(64)
    except OSError as problem:
        return False, problem.errno in (errno.EACCES, errno.EPERM)
    return whole(path) is not None, False


def _jetson_hwmon() -> "tuple[Sensor | None, str]":
    """JetPack 5 to 7: INA3221, and on Thor an INA238 for the whole board."""
    files = {}  # type: dict[str, tuple[list[str], int]]
    chips = _chips("ina3221")
    for chip in chips:
        for channel in range(1, 4):
            label = read_text(os.path.join(chip, f"in{channel}_label"), 64) or ""
            paths = [os.path.join(chip, f"in{channel}_input"), os.path.join(chip, f"curr{channel}_input")]
            if label not in NO_CHANNEL and label not in files and product(paths, 1) is not None:
                files[label] = (paths, 1)
    name = "ina3221"
    for chip in _chips("ina238"):
        label = _chip_label(chip)
        path = os.path.join(chip, "power1_input")
        if label in parsers.INPUTS and whole(path) is not None:
            files[label] = ([path], 1)
            name = "ina238"
    if not files:
        return None, "INA3221 is there, but none of its channels can be read" if chips else ""
    total = parsers.total_of(sorted(files))
    if total is None:
        return None, "no sum of the rails {} is known to be a whole".format(", ".join(sorted(files))[:200])
    return FileSensor(name, total[1], files, total[0], 0.05), ""


def _chip_label(chip: str) -> str:
    for name in ("label", "power1_label", "in1_label", "in0_label"):
        text = read_text(os.path.join(chip, name), 64)
        if text:
            return text
    return ""


def _jetson_iio() -> "tuple[Sensor | None, str]":
    """JetPack 4: milliwatts of three channels."""
    files = {}  # type: dict[str, tuple[list[str], int]]
    for chip in sorted(glob.glob(os.path.join(sysfs_root(), "bus/i2c/drivers/ina3221x/*-*/iio:device*"))):
        for channel in range(3):
            label = read_text(os.path.join(chip, f"rail_name_{channel}"), 64) or ""
            path = os.path.join(chip, f"in_power{channel}_input")
            if label not in NO_CHANNEL and label not in files and whole(path) is not None:
                files[label] = ([path], 1000)
    total = parsers.total_of(sorted(files))
    if total is None:
        return None, "no sum of the rails {} is known".format(", ".join(sorted(files))[:200]) if files else ""
    return FileSensor("ina3221x", total[1], files, total[0], 0.05), ""


def _ina2xx() -> "tuple[Sensor | None, str]":
    """A meter chip of the user's own on I2C, in the board's supply line."""
    found = []
    for name in INA2XX:
        for chip in _chips(name):
            for paths in (["power1_input"], ["in1_input", "curr1_input"]):
                full = [os.path.join(chip, path) for path in paths]
                if product(full, 1) is not None:
                    found.append((_chip_label(chip) or name, full))
                    break
    if len(found) > 1:
        return None, f"{len(found)} INA2xx chips: it is not known which one is in the supply line"
    if not found:
        return None, ""
    label, paths = found[0]
    return FileSensor("ina2xx", "board_input", {label: (paths, 1)}, [label], 0.02), ""


def _pmic() -> "tuple[Sensor | None, str]":
    model = read_text(os.path.join(sysfs_root(), "firmware/devicetree/base/model")) or ""
    has_pmic = "Raspberry Pi 5" in model or "Compute Module 5" in model
    command = command_path("vcgencmd")
    if command is None:
        return None, "vcgencmd is not installed (package raspi-utils)" if has_pmic else ""
    start = time.monotonic()
    text, problem = output_of([command, "pmic_read_adc"])
    rails = sorted(parsers.pmic_powers(text))
    if rails:
        return PmicSensor(command, rails, time.monotonic() - start), ""
    hint = ""
    if any(words in problem for words in ("VCHI", "vcio", "vchiq", "ermission", "open device")):
        hint = " (put the user into the group `video`: sudo usermod -aG video USER)"
    return None, f"vcgencmd pmic_read_adc: {problem or 'no rails'}{hint}" if has_pmic or hint else ""


def _rapl() -> "tuple[Sensor | None, str]":
    files = {}  # type: dict[str, tuple[list[str], int]]
    ranges = {}
    secret = False
    for folder in sorted(glob.glob(os.path.join(sysfs_root(), "class/powercap/intel-rapl:*"))):
        label = read_text(os.path.join(folder, "name"), 64) or ""
        path = os.path.join(folder, "energy_uj")
        if folder.count(":") - sysfs_root().count(":") != 1 or not label.startswith("package"):
            continue
        readable, hidden = _readable(path)
        secret = secret or hidden
        limit = whole(os.path.join(folder, "max_energy_range_uj"))
        if readable and limit is not None and limit > 0:
            files[label] = ([path], 1)
            ranges[label] = limit
    if not files:
        return None, "RAPL counters are there, but only root may read energy_uj" if secret else ""
    names = sorted(files)
    return FileSensor("rapl", "cpu_package", files, names, 0.05, "uJ", [ranges[name] for name in names]), ""


def _tegrastats() -> "tuple[Sensor | None, str]":
    command = command_path("tegrastats")
    if command is None:
        return None, ""
    try:
        sensor = TegrastatsSensor(command)
    except OSError as problem:
        return None, f"tegrastats: {problem.strerror}"
    if sensor.total:
        return sensor, ""
    sensor.close()
    return None, "tegrastats shows no rails that add up to a whole"
