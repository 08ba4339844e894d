"""The device that a network runs on."""

from __future__ import annotations

from stream4d.errors import ConfigError


def usable(name: str, *, has_network: bool = True) -> str:
    """Resolve ``auto``, and fail early where a device is asked for that is not there.

    Raises:
        ConfigError: it is not there.
    """
    if name == "cpu" or (name == "auto" and not has_network):
        return "cpu"  # without importing torch, which is half of the time to start
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {name!r} cannot be used ({reason}); try --device cpu") from None
    return name
