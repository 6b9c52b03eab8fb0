"""The dimension that depends on another class."""

from mdpr.config import DIMENSIONS

DIFFERENTIAL = DIMENSIONS[-1]
