"""For all tests: examples of property tests are not judged by their time, which a loaded machine stretches."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("edgesdk", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("edgesdk")
