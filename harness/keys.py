"""Private keys for logging in: a key file, or the SSH agent (which is asked, never forwarded)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import paramiko

from edgesdk.errors import ConfigError
from edgesdk.harness.board import Board

DEFAULT_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
UNREADABLE = (OSError, ValueError, TypeError, paramiko.SSHException)


@contextlib.contextmanager
def private_keys(board: Board) -> Iterator[list[paramiko.PKey]]:
    """The keys to try, in order, while the block runs (keys of the agent need its connection).

    With `board.key` only that one: from the file, or from the agent where the file wants a passphrase and NAME.pub lies
    beside it. Without, the user's usual files and the agent's keys.

    Raises:
        ConfigError: no usable key.
    """
    with contextlib.ExitStack() as stack:
        if board.key is not None:
            yield [_named_key(board, board.key, stack)]
            return
        keys: list[paramiko.PKey] = []
        for name in DEFAULT_KEYS:
            with contextlib.suppress(*UNREADABLE):
                keys.append(paramiko.PKey.from_path(Path.home() / ".ssh" / name))
        keys += _agent_keys(stack)
        if not keys:
            raise ConfigError(
                f"{board.name}: no private key: none in ~/.ssh, none in the SSH agent",
                "set `key` in farm.toml: ssh-keygen -t ed25519",
            )
        yield keys


def _named_key(board: Board, path: Path, stack: contextlib.ExitStack) -> paramiko.PKey:
    try:
        return paramiko.PKey.from_path(path)
    except UNREADABLE as problem:
        if "password" in str(problem).lower():
            held = _in_agent(path, stack)
            if held is not None:
                return held
            raise ConfigError(
                f"{board.name}: private key {path} wants a passphrase, and the SSH agent does not hold it",
                f"ssh-add {path}, or make a key for this farm: ssh-keygen -t ed25519",
            ) from problem
        raise ConfigError(
            f"{board.name}: private key {path}: {problem or type(problem).__name__}",
            "give a readable OpenSSH key without passphrase: ssh-keygen -t ed25519",
        ) from problem


def _in_agent(path: Path, stack: contextlib.ExitStack) -> paramiko.PKey | None:
    """The agent's key whose public half is in PATH.pub."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        words = path.with_name(path.name + ".pub").read_text().split()
        for key in _agent_keys(stack):
            if key.get_base64() in words[1:2]:
                return key
    return None


def _agent_keys(stack: contextlib.ExitStack) -> list[paramiko.PKey]:
    with contextlib.suppress(OSError, paramiko.SSHException):
        agent = paramiko.Agent()
        stack.callback(agent.close)
        return list(agent.get_keys())
    return []
