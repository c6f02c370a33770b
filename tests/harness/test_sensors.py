"""Power sensors on the board: parsers against samples of real boards, discovery in a fake /sys."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from harness_power import PMIC, command, files, ina3221
from hypothesis import given
from hypothesis import strategies as st

from edgesdk.harness.worker import rails, readers, sensors

ORIN_NANO = (
    "08-23-2026 13:57:46 RAM 3595/7607MB (lfb 1x1MB) SWAP 11/3804MB (cached 0MB) CPU [100%@1728,1%@1728,3%@1728,"
    "0%@1728,1%@729,1%@729] GR3D_FREQ 0% cpu@51C soc2@50.562C soc0@51.031C gpu@50.625C tj@51.781C soc1@51.781C "
    "VDD_IN 5832mW/5852mW VDD_CPU_GPU_CV 1307mW/1327mW VDD_SOC 1468mW/1468mW"
)
ORIN_SUPER = (
    "10-08-2026 04:35:02 RAM 6712/7620MB (lfb 12x4MB) SWAP 369/3810MB (cached 8MB) CPU [38%@1497,2%@729] "
    "EMC_FREQ 61%@2133 GR3D_FREQ 99%@[612] NVDEC off NVJPG off VIC off OFA off APE 200 cpu@57.125C tj@58.312C "
    "VDD_IN 16321mW/11204mW VDD_CPU_GPU_CV 7104mW/4944mW VDD_SOC 3120mW/3659mW"
)
AGX_ORIN = (
    "05-09-2026 18:42:06 RAM 18207/62841MB (lfb 466x4MB) SWAP 86/31420MB (cached 0MB) CPU [14%@2188,off] "
    "EMC_FREQ 3%@2133 GR3D_FREQ 0%@[0,0] NVENC 79%@166 NVDEC off APE 174 cpu@52.562C VDD_GPU_SOC 2412mW/2412mW "
    "VDD_CPU_CV 1607mW/1607mW VIN_SYS_5V0 4707mW/4707mW"
)
AGX_JP7 = (
    "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [1%@729] EMC_FREQ 3%@3199 GR3D_FREQ 12%@[1300,1300] "
    "cpu@52.968C/52.968C VDD_GPU_SOC 5139mW/5139mW/5139mW"
)
THOR = "RAM 4722/7844MB (lfb 1x512kB) EMC_FREQ 2%@1866 GR3D_FREQ @[1000,1000,1000] APE 150"
XAVIER_NX = (
    "07-09-2024 13:31:31 RAM 3168/6851MB (lfb 2x4MB) SWAP 161/3426MB (cached 0MB) CPU [23%@1397] EMC_FREQ 2%@204 "
    "GR3D_FREQ 0%@[114] VIC_FREQ 115 APE 150 AUX@45C CPU@46.5C thermal@45.6C PMIC@50C VDD_IN 2763mW/2846mW "
    "VDD_CPU_GPU_CV 650mW/670mW VDD_SOC 650mW/711mW"
)
NANO_JP4 = (
    "RAM 1000/3956MB (lfb 2x4MB) CPU [2%@102,off,off,1%@102] CV0@-256C GPU@-256C POM_5V_IN 2470/2470 POM_5V_GPU 0/0 "
    "POM_5V_CPU 492/492"
)
TEGRASTATS = (ORIN_NANO, ORIN_SUPER, AGX_ORIN, AGX_JP7, THOR, XAVIER_NX, NANO_JP4)


def test_pmic_sample_of_a_board() -> None:
    """Twelve rails, paired by name; the golden values were computed by hand from the sample."""
    powers = rails.pmic_powers(PMIC)
    assert len(powers) == 12
    assert sum(powers.values()) == pytest.approx(7.239819, abs=5e-7)
    assert powers["VDD_CORE"] == pytest.approx(5.363607, abs=5e-7)
    assert rails.parse_pmic(PMIC)["EXT5V"] == {"V": 5.09066}
    assert "EXT5V" not in powers and "BATT" not in powers


def test_pmic_variants() -> None:
    """Another name for a rail, a battery that is not a number, and the short form."""
    text = PMIC.replace("0V8_SW_", "0V8_SYS_").replace("BATT_V volt(25)=0.00000000V", "BATT_V volt(25)=nanV")
    assert rails.pmic_powers(text)["0V8_SYS"] == rails.pmic_powers(PMIC)["0V8_SW"]
    assert "BATT" not in rails.parse_pmic(text)
    assert rails.parse_pmic("VDD_CORE_V=0.8750V") == {"VDD_CORE": {"V": 0.875}}


def test_tegrastats_of_all_generations() -> None:
    """Rails, temperatures, cores and clocks of each form."""
    found = [rails.parse_tegrastats(line) for line in TEGRASTATS]
    assert all(entry is not None for entry in found)
    nano, super_, agx, jp7, thor, xavier, jp4 = (entry or {} for entry in found)
    assert nano["rails"] == {"VDD_IN": 5832, "VDD_CPU_GPU_CV": 1307, "VDD_SOC": 1468}
    assert nano["time"] == "08-23-2026 13:57:46" and nano["ram"] == (3595, 7607)
    assert nano["cpu"] == [(100, 1728), (1, 1728), (3, 1728), (0, 1728), (1, 729), (1, 729)]
    assert nano["temps"]["soc2"] == 50.562 and nano["gr3d"] == ("0", None) and nano["emc"] is None
    assert super_["rails"]["VDD_IN"] == 16321 and super_["emc"] == ("61", "2133") and super_["gr3d"] == ("99", "612")
    assert agx["rails"] == {"VDD_GPU_SOC": 2412, "VDD_CPU_CV": 1607, "VIN_SYS_5V0": 4707}
    assert agx["cpu"] == [(14, 2188), None] and agx["gr3d"] == ("0", "0,0")
    assert jp7["rails"] == {"VDD_GPU_SOC": 5139} and jp7["temps"] == {"cpu": 52.968}
    assert thor["rails"] == {} and thor["cpu"] is None and thor["gr3d"] == (None, "1000,1000,1000")
    assert xavier["rails"] == {"VDD_IN": 2763, "VDD_CPU_GPU_CV": 650, "VDD_SOC": 650}
    assert xavier["temps"] == {"aux": 45, "cpu": 46.5, "thermal": 45.6, "pmic": 50}
    assert jp4["rails"] == {"POM_5V_IN": 2470, "POM_5V_GPU": 0, "POM_5V_CPU": 492}
    assert jp4["temps"] == {} and jp4["cpu"] == [(2, 102), None, None, (1, 102)]


def test_throttled_bits() -> None:
    """The bits, or None for what is not an answer."""
    assert rails.parse_throttled("throttled=0x50000\n") == 0x50000
    assert rails.parse_throttled("VCHI initialization failed") is None
    assert rails.parse_throttled("throttled=0x") is None


@given(st.one_of(st.text(), st.text(string.printable), st.sampled_from(TEGRASTATS), st.just(PMIC)), st.data())
def test_junk_never_raises(text: str, data: st.DataObject) -> None:
    """Any text, and any cut, doubled or edited piece of a real one."""
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, len(text)))
    junk = data.draw(st.text(max_size=8))
    for mangled in (text, text[start:end], text[:start] + junk + text[end:]):
        powers = rails.pmic_powers(mangled)
        assert all(isinstance(value, float) and value == value for value in powers.values())
        rails.parse_throttled(mangled)
        for line in mangled.splitlines():
            found = rails.parse_tegrastats(line)
            assert found is None or all(type(value) is int for value in found["rails"].values())


@pytest.mark.parametrize("line", TEGRASTATS)
def test_cut_lines_of_tegrastats_hold_no_wrong_rail(line: str) -> None:
    """A line cut anywhere shows a rail with its own value, or not at all."""
    whole = rails.parse_tegrastats(line)
    assert whole is not None
    for end in range(len(line)):
        cut = rails.parse_tegrastats(line[:end])
        if cut is not None:
            assert cut["rails"].items() <= whole["rails"].items()


def test_totals() -> None:
    """One input rail, a sum that is the module, or nothing."""
    assert rails.total_of(["VDD_SOC", "VDD_IN"]) == (["VDD_IN"], "board_input")
    assert rails.total_of(["POM_5V_CPU", "POM_5V_GPU", "POM_5V_IN"]) == (["POM_5V_IN"], "board_input")
    agx = ["VDDQ_VDD2_1V8AO", "VDD_CPU_CV", "VDD_GPU_SOC", "VIN_SYS_5V0"]
    found = rails.total_of(agx)
    assert found is not None and sorted(found[0]) == agx and found[1] == "module"
    assert rails.total_of(["VDD_CPU_CV", "VDD_GPU_SOC"]) is None


@pytest.fixture
def sysfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty /sys, and no commands but those that a test makes in `bin`."""
    root = tmp_path / "sys"
    root.mkdir()
    monkeypatch.setenv("EDGESDK_SYSFS", str(root))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/bin:/usr/bin")
    monkeypatch.setattr(sensors, "EXTRA_PATH", ())
    return root


def read(sensor: readers.Sensor | None) -> dict[str, int | None]:
    assert sensor is not None
    try:
        return dict(zip(sensor.rails, sensor.read(), strict=True))
    finally:
        sensor.close()


def test_nothing_there(sysfs: Path) -> None:
    """No sensor, and a reason."""
    sensor, reason = sensors.discover()
    assert sensor is None and reason.startswith("no power sensor: ")
    assert sensors.describe() == {"sensor": None, "reason": reason}


def test_ina3221_by_hwmon(sysfs: Path) -> None:
    """Channels without a name, without a wire, and the sum of shunt voltages are no rails; P = mV · mA."""
    ina3221(sysfs, [("VDD_IN", 4984, 1856), ("NC", 5000, 100), ("VDD_SOC", 4984, 296)])
    sensor, _ = sensors.discover()
    assert sensor is not None
    assert (sensor.name, sensor.boundary, sensor.total) == ("ina3221", "board_input", ["VDD_IN"])
    assert read(sensor) == {"VDD_IN": 9_250_304, "VDD_SOC": 4984 * 296}


def test_two_ina3221_are_a_module(sysfs: Path) -> None:
    """AGX Orin: rails of two chips are added."""
    ina3221(sysfs, [("VDD_GPU_SOC", 5000, 480), ("VDD_CPU_CV", 5000, 320), ("VIN_SYS_5V0", 5000, 940)])
    ina3221(sysfs, [("VDDQ_VDD2_1V8AO", 5000, 100)], "1-0041", 4)
    sensor, _ = sensors.discover()
    assert sensor is not None and sensor.boundary == "module" and len(sensor.total) == 4


def test_ina3221_where_the_bus_is_not_shown(sysfs: Path) -> None:
    """By the chip's name in class/hwmon."""
    files(sysfs, {
        "class/hwmon/hwmon5/name": "ina3221", "class/hwmon/hwmon5/in1_label": "VDD_IN",
        "class/hwmon/hwmon5/in1_input": 5000, "class/hwmon/hwmon5/curr1_input": 1000,
    })
    assert read(sensors.discover()[0]) == {"VDD_IN": 5_000_000}


def test_jetpack_4(sysfs: Path) -> None:
    """iio, milliwatts."""
    folder = "bus/i2c/drivers/ina3221x/6-0040/iio:device0"
    files(sysfs, {
        f"{folder}/rail_name_0": "POM_5V_IN", f"{folder}/in_power0_input": 2470, f"{folder}/rail_name_1": "POM_5V_GPU",
        f"{folder}/in_power1_input": 0, f"{folder}/rail_name_2": "POM_5V_CPU", f"{folder}/in_power2_input": 492,
    })
    sensor, _ = sensors.discover()
    assert sensor is not None and sensor.total == ["POM_5V_IN"] and sensor.boundary == "board_input"
    assert read(sensor) == {"POM_5V_IN": 2_470_000, "POM_5V_GPU": 0, "POM_5V_CPU": 492_000}


def test_thor_has_an_ina238_for_its_input(sysfs: Path) -> None:
    """hwmon's power is in microwatts already."""
    ina3221(sysfs, [("VDD_GPU", 12000, 500), ("VDD_CPU_SOC_MSS", 12000, 400)])
    files(sysfs, {
        "class/hwmon/hwmon2/name": "ina238", "class/hwmon/hwmon2/label": "VIN",
        "class/hwmon/hwmon2/power1_input": 24_500_000,
    })
    sensor, _ = sensors.discover()
    assert sensor is not None and (sensor.name, sensor.total) == ("ina238", ["VIN"])
    assert read(sensor)["VIN"] == 24_500_000


def test_ina2xx_in_the_supply_line(sysfs: Path) -> None:
    """A chip with power, or one with volts and amperes only; two of them are refused."""
    files(sysfs, {"class/hwmon/hwmon1/name": "ina226", "class/hwmon/hwmon1/power1_input": 3_200_000})
    sensor, _ = sensors.discover()
    assert sensor is not None and (sensor.name, sensor.boundary) == ("ina2xx", "board_input")
    assert read(sensor) == {"ina226": 3_200_000}
    (sysfs / "class/hwmon/hwmon1/power1_input").unlink()
    files(sysfs, {"class/hwmon/hwmon1/in1_input": 5100, "class/hwmon/hwmon1/curr1_input": 600})
    assert read(sensors.discover()[0]) == {"ina226": 3_060_000}
    files(sysfs, {"class/hwmon/hwmon2/name": "ina219", "class/hwmon/hwmon2/power1_input": 1})
    assert sensors.discover() == (
        None, "no power sensor: 2 INA2xx chips: it is not known which one is in the supply line"
    )


def test_pmic_by_command(sysfs: Path, tmp_path: Path) -> None:
    """The rails' sum, labelled as rails."""
    (tmp_path / "pmic").write_text(PMIC)
    command(tmp_path / "bin", "vcgencmd", f'[ "$1" = pmic_read_adc ] && exec cat {tmp_path}/pmic')
    sensor, _ = sensors.discover()
    assert sensor is not None and (sensor.name, sensor.boundary) == ("pmic", "pmic_rails")
    values = read(sensor)
    assert sum(value or 0 for value in values.values()) == pytest.approx(7_239_819, abs=12)
    assert sensor.total == sensor.rails and sensor.period_s >= 0.1


def test_rapl(sysfs: Path) -> None:
    """Packages only: no cores inside them, no platform around them; where the counter wraps is known."""
    for name, label, value in (("0", "package-0", 111), ("1", "package-1", 222), ("0:0", "core", 5), ("2", "psys", 9)):
        folder = f"class/powercap/intel-rapl:{name}"
        files(sysfs, {
            f"{folder}/name": label, f"{folder}/energy_uj": value, f"{folder}/max_energy_range_uj": 262_143_328_850,
        })
    sensor, _ = sensors.discover()
    assert sensor is not None and (sensor.name, sensor.boundary, sensor.unit) == ("rapl", "cpu_package", "uJ")
    assert sensor.ranges == [262_143_328_850] * 2
    assert read(sensor) == {"package-0": 111, "package-1": 222}


def test_tegrastats_is_the_fallback(sysfs: Path, tmp_path: Path) -> None:
    """A process that prints lines; it is gone when the sensor is closed."""
    pid = tmp_path / "pid"
    lines = f"echo $$ > {pid}\nwhile :; do echo '{ORIN_NANO}'; sleep 0.05; done"
    command(tmp_path / "bin", "tegrastats", lines)
    sensor, _ = sensors.discover()
    assert sensor is not None and (sensor.name, sensor.boundary, sensor.total) == (
        "tegrastats", "board_input", ["VDD_IN"],
    )
    assert read(sensor) == {"VDD_CPU_GPU_CV": 1_307_000, "VDD_IN": 5_832_000, "VDD_SOC": 1_468_000}
    assert not Path(f"/proc/{pid.read_text().strip()}").exists()


@given(st.binary(max_size=80))
def test_files_of_the_kernel_may_hold_anything(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    """A number, or None."""
    path = tmp_path_factory.getbasetemp() / "junk"
    path.write_bytes(data)
    value = readers.whole(str(path))
    assert value is None or abs(value) < 10**18
