"""A study: a file that lists sizes, token budgets and seeds, and the runs and rows it stands for.

``python -m helpers.sweep plan|run|status|collect STUDY.toml`` — runs of one size and seed share their stable
phase (the trunk) and branch off it to decay, so four budgets cost little more than the longest.
Each run has a folder named by the hash of its settings, with checkpoints while it runs and ``row.json`` when
it is done: what is done is skipped, what was cut resumes, and rows are collected from the folders at any
time.

``study`` reads the file, ``rows`` names and describes runs, ``family`` trains, ``schedule`` keeps the engines
(``local``, ``cluster``) busy and tries again what died, ``planning`` and ``status`` look ahead.
"""

from helpers.sweep.cli import main
from helpers.sweep.engines import Engine, Local
from helpers.sweep.family import run_family
from helpers.sweep.planning import calibrate, plan
from helpers.sweep.rows import (
    PAST_PLATEAU,
    collect,
    is_past_plateau,
    row,
    run_id,
    stable_id,
    trunk_folder,
    trunk_of,
)
from helpers.sweep.schedule import run
from helpers.sweep.status import status
from helpers.sweep.study import Study, Text

__all__ = [
    "PAST_PLATEAU",
    "Engine",
    "Local",
    "Study",
    "Text",
    "calibrate",
    "collect",
    "is_past_plateau",
    "main",
    "plan",
    "row",
    "run",
    "run_family",
    "run_id",
    "stable_id",
    "status",
    "trunk_folder",
    "trunk_of",
]
