"""The kinds of reports."""

from mlx_deltamem.reports.adapter import AdapterReport
from mlx_deltamem.reports.diff import AdapterDiff, SessionDiff
from mlx_deltamem.reports.foreign import ForeignReport
from mlx_deltamem.reports.model import ModelReport
from mlx_deltamem.reports.session import SessionReport

Report = AdapterReport | ModelReport | SessionReport | ForeignReport | AdapterDiff | SessionDiff
