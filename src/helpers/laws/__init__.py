"""Fits of scaling laws, and what follows from them: arrays in, frozen results out.

Every result has `.predict`, `.interval(level)` and `.summary()`. Bad input raises ValueError and names the
value. What the data cannot tell warns `NotIdentifiedWarning`, or raises `NotIdentified` where no fit has any
meaning. Explained in chapter 10, Fitting laws, and chapter 12, Planning.
"""

from .common import NotIdentified, NotIdentifiedWarning
from .curves import Slices, slices
from .downstream import DownstreamFit, fit_downstream
from .frontier import FrontierFit, fit_envelope, fit_isoflop
from .kaplan import KaplanFit, fit_kaplan
from .law import Law, Optimum
from .multiplicative import MultiplicativeFit, fit_multiplicative
from .parametric import ParametricFit, Profile, fit_parametric
from .planning import Bill, Hardware, Plan, allocate
from .power import PowerFit, fit_power
from .repeats import DataConstrainedFit, effective, fit_data_constrained

__all__ = [
    "Bill",
    "DataConstrainedFit",
    "DownstreamFit",
    "FrontierFit",
    "Hardware",
    "KaplanFit",
    "Law",
    "MultiplicativeFit",
    "NotIdentified",
    "NotIdentifiedWarning",
    "Optimum",
    "ParametricFit",
    "Plan",
    "PowerFit",
    "Profile",
    "Slices",
    "allocate",
    "effective",
    "fit_data_constrained",
    "fit_downstream",
    "fit_envelope",
    "fit_isoflop",
    "fit_kaplan",
    "fit_multiplicative",
    "fit_parametric",
    "fit_power",
    "slices",
]
