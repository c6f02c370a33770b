"""The fixtures of the harness tests serve the fault tests too."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_path = Path(__file__).parents[1] / "harness" / "conftest.py"
_spec = importlib.util.spec_from_file_location("harness_fixtures", _path)
assert _spec is not None and _spec.loader is not None
_fixtures = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_fixtures)

host, target, server, remote = _fixtures.host, _fixtures.target, _fixtures.server, _fixtures.remote
