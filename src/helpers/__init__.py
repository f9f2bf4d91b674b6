"""The small package behind the executable book *The Scalability of Pre-trained Models*.

One module, one noun; the chapters import what they need, for example `from helpers.claims import claim`.
Nothing is imported here, so that `import helpers` costs nothing and `helpers.laws` needs no torch.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("scalability-helpers")
except PackageNotFoundError:  # the source folder is on the path, but nothing was installed
    __version__ = "0+unknown"

__all__ = ["__version__"]
