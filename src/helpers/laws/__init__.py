"""Fits of scaling laws, and what follows from them: arrays in, frozen results out.

Every result has `.predict`, `.interval(level)` and `.summary()`. Bad input raises ValueError and names the
value. What the data cannot tell warns `NotIdentifiedWarning`, or raises `NotIdentified` where no fit has any
meaning. Explained in chapter 10, Fitting laws.
"""

from .common import NotIdentified, NotIdentifiedWarning
from .multiplicative import MultiplicativeFit, fit_multiplicative
from .parametric import Optimum, ParametricFit, Profile, fit_parametric
from .power import PowerFit, fit_power

__all__ = [
    "MultiplicativeFit",
    "NotIdentified",
    "NotIdentifiedWarning",
    "Optimum",
    "ParametricFit",
    "PowerFit",
    "Profile",
    "fit_multiplicative",
    "fit_parametric",
    "fit_power",
]
