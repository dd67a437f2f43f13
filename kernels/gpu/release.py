"""Which release of Triton the kernels need; a machine without a GPU needs none."""

from __future__ import annotations

from ...errors import ConfigError

FLOOR = "3.6"  # the first with all that the kernels use; the extra `cuda` asks for it
_ADVICE = "Run `pip install 'triton>=3.6'` (with a torch of its time, 2.11 or newer), or use device='cpu'."


def check_triton() -> None:
    """Raise ConfigError when Triton is missing or older than the kernels."""
    try:
        import triton
    except ImportError as error:
        message = f"A GPU needs the package triton, which cannot be imported: {error}. {_ADVICE}"
        raise ConfigError(message) from error
    if _release(triton.__version__) < _release(FLOOR):
        raise ConfigError(f"A GPU needs triton {FLOOR} or newer, found {triton.__version__}. {_ADVICE}")


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])
