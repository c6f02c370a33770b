"""A real sshd on a 127.0.0.1 port, with its own keys and configuration in one folder."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgesdk.harness.board import Board

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@dataclass
class Server:
    """Where it listens, and the user's private key."""

    port: int
    key: Path
    folder: Path
    process: subprocess.Popen[bytes]

    def known_hosts_line(self) -> str:
        """Its line for known_hosts."""
        kind, data = (self.folder / "host_key.pub").read_text().split()[:2]
        return f"[127.0.0.1]:{self.port} {kind} {data}\n"

    def board(self, known_hosts: Path, **changes: Any) -> Board:
        """A board behind this server."""
        values: dict[str, Any] = {
            "host": "127.0.0.1", "port": self.port, "user": getpass.getuser(), "key": self.key,
            "known_hosts": known_hosts, "python": sys.executable, **changes,
        }
        return Board("remote", "host", **values)


def make_key(path: Path) -> Path:
    """A new ed25519 key without passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", str(path)], check=True)
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def run_sshd(folder: Path, home: Path, port: int | None = None) -> Iterator[Server]:
    """Start sshd; the sessions' HOME and files lie below `home` (the real home stays untouched)."""
    assert SSHD is not None
    folder.mkdir(parents=True, exist_ok=True)
    home.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    host_key, key = make_key(folder / "host_key"), make_key(folder / "user_key")
    authorized = folder / "authorized_keys"
    authorized.write_text((folder / "user_key.pub").read_text())
    port = port or free_port()
    # ForceCommand moves the session into its own home and runs the command with bash, which reads $HOME/.bashrc for
    # sshd's sessions as a real login would.
    forced = folder / "session"
    start = 'cd "$HOME"; exec bash -c "$SSH_ORIGINAL_COMMAND"'
    lines = ["#!/bin/sh", "unset SHLVL", f"export HOME={home}", start, ""]
    forced.write_text("\n".join(lines))
    forced.chmod(0o755)
    # The login shell in front of it must not read the real ~/.bashrc (which may take seconds): bash does so below the
    # second level only.
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {host_key}\nAuthorizedKeysFile {authorized}\nPidFile none\n"
        f"StrictModes no\nUsePAM no\nPasswordAuthentication no\nAllowUsers {getpass.getuser()}\n"
        f"PermitRootLogin prohibit-password\nForceCommand {forced}\nMaxStartups 50\nSetEnv SHLVL=9\n"
    )
    log = (folder / "log").open("wb")
    process = subprocess.Popen([SSHD, "-D", "-e", "-f", str(config)], stderr=log, stdout=log)
    try:
        for _ in range(200):
            if process.poll() is not None:
                raise RuntimeError((folder / "log").read_text())
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield Server(port, key, folder, process)
    finally:
        process.terminate()
        process.wait(10)
        log.close()
