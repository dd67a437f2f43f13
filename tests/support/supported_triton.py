"""``pytest.importorskip("supported_triton")`` skips tests where an engine on a GPU would be refused.

Without a GPU the kernels are interpreted, by the Triton that a GPU would need.
"""

from __future__ import annotations

from rootlet.errors import ConfigError
from rootlet.kernels.gpu.release import check_triton

try:
    check_triton()
except ConfigError as error:
    raise ModuleNotFoundError(str(error)) from error
