"""A machine that is not measured."""

import dataclasses
from typing import Any

from secateur.planning.rates import Rates


def slow(**rates):
    """One that does a million of everything in a second, on a CPU in float32, and has a terabyte of memory."""
    given: dict[str, Any] = {"device": "cpu", "dtype": "float32", "free": 10**12, "device_free": 10**12} | rates
    names = [field.name for field in dataclasses.fields(Rates)]
    return Rates(**{name: given.get(name, 10**6) for name in names})
