"""Settings of every pytest run, notebooks included: the quick profile, no network, stderr not compared.

It stands in the root because `pytest --nbval book` does not come past `tests/conftest.py`.
"""

import os

import pytest

# Kernels inherit these. The tests are about the quick profile whatever profile the shell has.
os.environ["BOOK_PROFILE"] = "quick"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
# Jupyter warns about its old folders unless told to use the platform's.
os.environ["JUPYTER_PLATFORM_DIRS"] = "1"


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Leave stderr out of nbval's comparison: it holds progress bars and warnings, which always differ."""
    if collector.nodeid.endswith(".ipynb") and hasattr(collector, "skip_compare"):
        collector.skip_compare += ("stderr",)
