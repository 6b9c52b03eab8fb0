"""The dimension that depends on another class."""

from mdpr.params import DIMENSIONS

DIFFERENTIAL = DIMENSIONS[-1]
