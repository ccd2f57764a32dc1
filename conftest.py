"""Loads the plugin for a checkout; an installed hugepfn brings it by its entry point."""

import importlib.metadata

_INSTALLED = any(point.group == "pytest11" for point in importlib.metadata.entry_points(name="harness.pytest_plugin"))
pytest_plugins = [] if _INSTALLED else ["harness.pytest_plugin"]
