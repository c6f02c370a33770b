"""An emulated board over real SSH: what it says it is, what it runs, what it counts, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import paramiko
import pytest

from edgesdk.errors import BoardError
from edgesdk.harness import emulate
from edgesdk.harness.board import Board
from edgesdk.harness.emulate import layers, namespaces, state
from edgesdk.targets.target import load_target

pytestmark = pytest.mark.skipif(os.environ.get("EDGESDK_NO_EMULATION") == "1", reason="EDGESDK_NO_EMULATION=1")

RPI4, RPI5 = load_target("rpi4"), load_target("rpi5")
COMPILER = "aarch64-linux-gnu-gcc"
COUNTED = r"""
#include <stdio.h>
#include <sys/prctl.h>
#define MARK(id) prctl(0x45444745, id, 0, 0, 0)
int main(void)
{
    MARK(1);
    for (int i = 0; i < 10; i++) {
        __asm__ volatile(".arch armv8.2-a+dotprod+fp16\n"
                         "sdot v0.4s, v1.16b, v2.16b\n" "udot v0.4s, v1.16b, v2.4b[1]\n"
                         "smull v3.8h, v1.8b, v2.8b\n" "smlal2 v3.8h, v1.16b, v2.16b\n" "umull v3.8h, v1.8b, v2.8b\n"
                         "smull v3.4s, v1.4h, v2.4h\n"
                         "fmla v4.4s, v1.4s, v2.4s\n" "fmla v4.4s, v1.4s, v2.s[0]\n" "fmla v4.8h, v1.8h, v2.8h\n"
                         "fmul v4.4s, v1.4s, v2.4s\n" "add v4.4s, v1.4s, v2.4s\n" ::: "v0", "v3", "v4");
    }
    MARK(2);
    puts("ran");
    return 0;
}
"""
DOT = r"""
int main(void)
{
    __asm__ volatile(".arch armv8.2-a+dotprod\n" "sdot v0.4s, v1.16b, v2.16b\n" ::: "v0");
    return 0;
}
"""
MMLA = r"""
int main(void)
{
    __asm__ volatile(".arch armv8.6-a+i8mm\n" "smmla v0.4s, v1.16b, v2.16b\n" "usdot v0.4s, v1.16b, v2.16b\n" ::: "v0");
    return 0;
}
"""
TWO_THREADS = r"""
#include <pthread.h>
static void *work(void *unused)
{
    for (int i = 0; i < 100000; i++) {
        __asm__ volatile(".arch armv8.2-a+dotprod\n" "sdot v0.4s, v1.16b, v2.16b\n" ::: "v0");
    }
    return unused;
}
int main(void)
{
    pthread_t other;
    pthread_create(&other, 0, work, 0);
    work(0);
    pthread_join(other, 0);
    return 0;
}
"""


def connect(board: Board) -> paramiko.SSHClient:
    assert board.host is not None
    client = paramiko.SSHClient()
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
    client.load_host_keys(str(board.known_hosts))
    client.connect(
        board.host,
        board.port,
        board.user,
        key_filename=str(board.key),
        timeout=30,
        allow_agent=False,
        look_for_keys=False,
    )
    return client


def run(client: paramiko.SSHClient, command: str) -> tuple[int, str]:
    """Exit status (-1 with a signal) and both streams."""
    _, output, _ = client.exec_command(f"exec 2>&1; {command}", timeout=120)
    text = output.read().decode()
    return output.channel.recv_exit_status(), text


def send(client: paramiko.SSHClient, content: bytes, path: str) -> None:
    with client.open_sftp() as sftp:
        with sftp.open(path, "wb") as file:
            file.write(content)
        sftp.chmod(path, 0o755)


def compiled(source: str, folder: Path, name: str) -> Path:
    (folder / f"{name}.c").write_text(source)
    command = [COMPILER, "-O2", "-static", "-pthread", "-o", str(folder / name), str(folder / f"{name}.c")]
    subprocess.run(command, check=True, capture_output=True)
    return folder / name


def counts(text: str, kind: str) -> list[dict[str, int]]:
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["edgecount"] == kind]


def waits_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


def descendants(pid: int) -> set[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid}.union(*(descendants(int(child)) for child in children))


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def supervisor_of(board: Board) -> int:
    document = state.read(board.name)
    assert document is not None
    pid = document["pid"]
    assert isinstance(pid, int)
    return pid


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of its own, so that boards of other processes are not touched, with the machine's built layers."""
    emulate.prepare(print)
    built = state.cache_folder()
    folder = tmp_path_factory.mktemp("cache")
    for layer in [*built.glob("rootfs-*"), *built.glob("qemu-*")]:
        (folder / layer.name).symlink_to(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGESDK_CACHE", str(folder))
        yield folder
        for name in state.names():
            emulate.stop(name)


@pytest.fixture(scope="module")
def board(cache: Path) -> Iterator[Board]:
    with emulate.emulated(RPI5) as started:
        yield started


@pytest.fixture(scope="module")
def client(board: Board) -> Iterator[paramiko.SSHClient]:
    with connect(board) as connection:
        yield connection


def test_board_describes_itself(board: Board) -> None:
    assert board.name == "rpi5-emulated"
    assert board.target == "raspberry-pi/5"
    assert board.provenance == "emulated"
    assert board in emulate.running()


def test_looks_like_the_target(client: paramiko.SSHClient, board: Board) -> None:
    assert run(client, "uname -m; hostname") == (0, "aarch64\nrpi5-emulated\n")
    cpuinfo = run(client, "cat /proc/cpuinfo")[1]
    assert cpuinfo.count("CPU part\t: 0xd0b") == 4
    assert "asimddp" in cpuinfo.split()
    assert board.serial is not None and board.serial in cpuinfo
    assert run(client, "cat /sys/firmware/devicetree/base/model")[1] == "Raspberry Pi 5 Model B Rev 1.0\0"
    assert run(client, "cat /sys/devices/system/cpu/possible")[1] == "0-3\n"
    assert run(client, "cat /sys/devices/system/cpu/cpu3/cpufreq/scaling_max_freq")[1] == "2400000\n"
    assert int(run(client, "cat /sys/class/thermal/thermal_zone0/temp")[1]) > 0
    assert run(client, "cat /etc/os-release")[1].count("bookworm") > 0


def test_host_is_not_visible(client: paramiko.SSHClient, tmp_path: Path) -> None:
    nodes = set(run(client, "ls /dev")[1].split())
    assert nodes == {"fd", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"}
    processes = run(client, "ls /proc")[1].split()
    assert 0 < sum(name.isdigit() for name in processes) < 12
    assert run(client, f"ls {tmp_path}")[0] != 0
    assert run(client, "cat /proc/cmdline /proc/kmsg") == (0, "")
    assert run(client, "echo 1 > /proc/sys/vm/drop_caches")[0] != 0
    assert run(client, "mount -t tmpfs none /mnt || mount --bind / /root")[0] != 0


def test_terminal_and_sftp(client: paramiko.SSHClient) -> None:
    _, output, _ = client.exec_command("tty", get_pty=True, timeout=60)
    assert output.read().decode().strip() == "/dev/pts/0"
    send(client, b"edge" * 100_000, "/root/block")
    with client.open_sftp() as sftp, sftp.open("/root/block", "rb") as file:
        assert file.read() == b"edge" * 100_000


def test_refuses_other_keys_forwarding_and_passwords(board: Board, client: paramiko.SSHClient) -> None:
    with pytest.raises(paramiko.SSHException), paramiko.SSHClient() as stranger:
        stranger.set_missing_host_key_policy(paramiko.RejectPolicy())
        stranger.connect("127.0.0.1", board.port, "root", key_filename=str(board.key), allow_agent=False, timeout=30)
    with pytest.raises(paramiko.BadAuthenticationType), paramiko.SSHClient() as guesser:
        guesser.load_host_keys(str(board.known_hosts))
        guesser.connect("127.0.0.1", board.port, "root", "", allow_agent=False, look_for_keys=False, timeout=30)
    transport = client.get_transport()
    assert transport is not None
    with pytest.raises(paramiko.ChannelException):
        transport.open_channel("direct-tcpip", ("127.0.0.1", board.port), ("127.0.0.1", 1))


def test_python_and_onnxruntime(client: paramiko.SSHClient) -> None:
    import onnx

    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 4])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)
    send(client, model.SerializeToString(), "/root/model.onnx")
    program = (
        "import numpy, onnxruntime, sys\n"
        "session = onnxruntime.InferenceSession('/root/model.onnx', providers=['CPUExecutionProvider'])\n"
        "print(session.run(None, {'x': numpy.ones((2, 4), 'float32')})[0].tolist(), onnxruntime.__version__)\n"
    )
    send(client, program.encode(), "/root/program.py")
    status, text = run(client, "python3 /root/program.py")
    assert (status, text.strip().splitlines()[-1]) == (0, "[[18.0, 22.0, 26.0], [18.0, 22.0, 26.0]] 1.31.1")


def test_litert(client: paramiko.SSHClient) -> None:
    send(client, _tflite_doubling(), "/root/model.tflite")
    program = (
        "import numpy\n"
        "from ai_edge_litert.interpreter import Interpreter\n"
        "interpreter = Interpreter('/root/model.tflite', num_threads=1)\n"
        "interpreter.allocate_tensors()\n"
        "interpreter.set_tensor(0, numpy.array([[1, 2, 3, 4]], 'float32'))\n"
        "interpreter.invoke()\n"
        "print(interpreter.get_tensor(1).tolist())\n"
    )
    send(client, program.encode(), "/root/program.py")
    status, text = run(client, "python3 /root/program.py")
    assert (status, text.strip().splitlines()[-1]) == (0, "[[2.0, 4.0, 6.0, 8.0]]")


def _tflite_doubling() -> bytes:
    """A model of one operator: float32 [1, 4] added to itself."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    tensors = []
    for name in (b"x", b"y"):
        tensor = schema.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name, [1, 4], schema.TensorType.FLOAT32, 0
        tensors.append(tensor)
    operator = schema.OperatorT()
    operator.opcodeIndex, operator.inputs, operator.outputs = 0, [0, 0], [1]
    operator.builtinOptionsType = schema.BuiltinOptions.AddOptions
    operator.builtinOptions = schema.AddOptionsT()
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.ADD
    code.version = 1
    subgraph = schema.SubGraphT()
    subgraph.tensors, subgraph.inputs, subgraph.outputs, subgraph.operators = tensors, [0], [1], [operator]
    model = schema.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [subgraph], [schema.BufferT()]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_counts_each_class_and_repeats(client: paramiko.SSHClient, board: Board, tmp_path: Path) -> None:
    send(client, compiled(COUNTED, tmp_path, "counted").read_bytes(), "/root/counted")
    marks = []
    for out in ("/root/first.json", "/root/second.json"):
        command = f"QEMU_PLUGIN={board.counting_plugin},out={out} /root/counted"
        assert run(client, command) == (0, "ran\n")
        text = run(client, f"cat {out}")[1]
        assert len(counts(text, "exit")) == 1
        marks.append([{**mark, "pid": 0} for mark in counts(text, "mark")])
    assert marks[0] == marks[1]
    assert [mark["tag"] for mark in marks[0]] == [1, 2]
    region = marks[0][1]
    assert (region["dot"], region["mull8"], region["fmla"], region["mmla"]) == (20, 30, 30, 0)
    assert region["simd"] == 110
    parts = ("int", "branch", "ldst", "simd", "other")
    assert region["total"] == sum(region[part] for part in parts) > 110


def test_counts_threads_and_children(client: paramiko.SSHClient, board: Board, tmp_path: Path) -> None:
    send(client, compiled(TWO_THREADS, tmp_path, "threads").read_bytes(), "/root/threads")
    out = "/root/family.json"
    program = b"import subprocess\nfor _ in range(2): subprocess.run(['/root/threads'], check=True)\n"
    send(client, program, "/root/two.py")
    assert run(client, f"QEMU_PLUGIN={board.counting_plugin},out={out} python3 /root/two.py")[0] == 0
    lines = counts(run(client, f"cat {out}")[1], "exit")
    assert [line["dot"] for line in lines] == [200_000, 200_000, 0]  # the children, then Python
    assert len({line["pid"] for line in lines}) == 3


def test_counts_a_forked_child_from_zero(client: paramiko.SSHClient, board: Board) -> None:
    out = "/root/forked.json"
    send(client, b"import os\nif os.fork() == 0: os._exit(0)\nos.wait()\n", "/root/fork.py")
    assert run(client, f"QEMU_PLUGIN={board.counting_plugin},out={out} python3 /root/fork.py")[0] == 0
    child, parent = counts(run(client, f"cat {out}")[1], "exit")
    assert 0 < child["total"] < parent["total"] / 10


def test_plugin_counts_matrix_instructions(cache: Path, tmp_path: Path) -> None:
    qemu = layers.qemu_folder("/usr/bin/qemu-aarch64") / "qemu"
    program, out = compiled(MMLA, tmp_path, "mmla"), tmp_path / "counts"
    command = ["qemu-aarch64", "-cpu", "max", "-plugin", f"{qemu}/libedgecount.so,out={out}", str(program)]
    subprocess.run(command, check=True)
    (line,) = counts(out.read_text(), "exit")
    assert (line["mmla"], line["dot"]) == (1, 0)


def test_dot_product_only_where_the_cpu_has_it(client: paramiko.SSHClient, tmp_path: Path) -> None:
    binary = compiled(DOT, tmp_path, "dot").read_bytes()
    send(client, binary, "/root/dot")
    assert run(client, "/root/dot") == (0, "")
    with emulate.emulated(RPI4) as older, connect(older) as other:
        assert "asimddp" not in run(other, "cat /proc/cpuinfo")[1]
        send(other, binary, "/root/dot")
        assert run(other, "sh -c '/root/dot; echo status $?'")[1].strip().endswith("status 132")  # SIGILL
        assert len(emulate.running()) == 2
    assert [board.name for board in emulate.running()] == ["rpi5-emulated"]


def test_every_start_is_fresh_and_stop_leaves_nothing(cache: Path) -> None:
    mounts = Path("/proc/mounts").read_text()
    board = emulate.start(RPI4)
    with connect(board) as client:
        run(client, "touch /root/mark; setsid sleep 1000 > /dev/null 2>&1 < /dev/null &")
        assert run(client, "ls /root/mark")[0] == 0
    assert emulate.start(RPI4) == board
    family = descendants(supervisor_of(board))
    assert len(family) >= 3  # the supervisor, sshd, the program left behind
    assert Path("/proc/mounts").read_text() == mounts
    assert emulate.stop("rpi4") is True
    assert not listens(board.port)
    assert waits_for(lambda: not any(state.process_start(pid) for pid in family))
    assert Path("/proc/mounts").read_text() == mounts
    assert not any(entry.startswith("edgesdk") for entry in os.listdir(namespaces.BINFMT))
    left = {path.name for path in state.boards_folder().glob("rpi4*")}
    assert left <= {"rpi4-emulated.lock", "rpi4-emulated.users"}  # empty flock files
    assert emulate.stop("rpi4") is False
    again = emulate.start(RPI4)
    with connect(again) as client:
        assert run(client, "ls /root/mark")[0] != 0
    assert (again.serial, again.known_hosts) == (board.serial, board.known_hosts)
    assert emulate.stop(again.name) is True


def test_board_dies_with_its_supervisor(cache: Path) -> None:
    board = emulate.start(RPI4)
    supervisor = supervisor_of(board)
    family = descendants(supervisor)
    os.kill(supervisor, signal.SIGKILL)
    assert waits_for(lambda: not any(state.process_start(pid) for pid in family))
    assert not listens(board.port)
    assert state.state_file(board.name).exists()
    assert board not in emulate.running()
    assert not state.state_file(board.name).exists()
    assert not state.board_folder(board.name).exists()


def test_board_dies_with_its_only_user(cache: Path) -> None:
    program = (
        "import time\n"
        "from edgesdk.harness import emulate\n"
        "from edgesdk.targets.target import load_target\n"
        "with emulate.emulated(load_target('rpi4')):\n"
        "    print('up', flush=True)\n"
        "    time.sleep(1000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as user:
        assert user.stdout is not None and user.stdout.readline() == b"up\n"
        (board,) = (board for board in emulate.running() if board.name == "rpi4-emulated")
        with emulate.emulated(RPI4) as shared:
            assert shared == board
            user.kill()
            user.wait()
            time.sleep(2.5)  # longer than the supervisor needs to see that its user is gone
            assert shared in emulate.running()
    assert waits_for(lambda: not state.state_file("rpi4-emulated").exists())
    assert not listens(board.port)


def test_a_board_can_be_kept_beyond_its_block(cache: Path) -> None:
    with emulate.emulated(RPI4) as board:
        assert emulate.start(RPI4) == board
    time.sleep(2.5)  # longer than the supervisor needs to see that it has no user
    assert board in emulate.running()
    assert emulate.stop("rpi4") is True


def test_simultaneous_starts_give_one_board(cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        boards = list(pool.map(emulate.start, [RPI4] * 4))
    assert boards == [boards[0]] * 4
    assert emulate.stop("rpi4") is True
    assert not listens(boards[0].port)


def test_one_binfmt_entry_for_the_machine_on_older_kernels(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespaces, "private_binfmt_works", lambda: False)
    with emulate.emulated(RPI4) as board, connect(board) as client:
        assert run(client, "uname -m") == (0, "aarch64\n")
        document = state.read(board.name)
        assert document is not None and document["binfmt"] == f"edgesdk-{board.port}"
        assert document["binfmt"] in global_binfmt()
        supervisor = supervisor_of(board)
    assert f"edgesdk-{board.port}" not in global_binfmt()
    assert state.process_start(supervisor) is None


def global_binfmt() -> list[str]:
    """Entries of the machine's own binfmt_misc, mounted for a moment and only for this look."""
    look = f"mount -t binfmt_misc none {namespaces.BINFMT} && ls {namespaces.BINFMT}"
    done = subprocess.run(["unshare", "--mount", "sh", "-c", look], check=True, stdout=subprocess.PIPE, text=True)
    return done.stdout.split()


def test_another_device_of_the_same_name_is_refused(board: Board) -> None:
    assert RPI5.emulate is not None
    other = RPI5.model_copy(update={"emulate": RPI5.emulate.model_copy(update={"part": "0xd08"})})
    with pytest.raises(BoardError, match="other properties") as problem:
        emulate.start(other)
    assert "--stop" in problem.value.hint
    assert board in emulate.running()
