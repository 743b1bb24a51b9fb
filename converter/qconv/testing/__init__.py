"""The conformance kit: checks that a third-party plugin's own tests call.

Each check takes what the plugin made and raises :class:`ConformanceError`, an AssertionError that
says which rule of the plugin API is broken and where::

    def test_it_conforms():
        check_plugin(my_plugin)
        check_rounder(MyRounder, [UniformGrid(bits=4, symmetric=True, group_size=32)])
"""

from ._checks import check_validator_check
from ._failed import ConformanceError
from ._grids import check_grid
from ._plugins import check_plugin
from ._rounders import check_rounder
from ._sources import check_source

__all__ = [
    "ConformanceError",
    "check_grid",
    "check_plugin",
    "check_rounder",
    "check_source",
    "check_validator_check",
]
