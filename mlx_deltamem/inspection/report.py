"""The kinds of reports."""

from mlx_deltamem.inspection.adapter import AdapterReport
from mlx_deltamem.inspection.diff import AdapterDiff, SessionDiff
from mlx_deltamem.inspection.foreign import ForeignReport
from mlx_deltamem.inspection.model import ModelReport
from mlx_deltamem.inspection.session import SessionReport

Report = AdapterReport | ModelReport | SessionReport | ForeignReport | AdapterDiff | SessionDiff
