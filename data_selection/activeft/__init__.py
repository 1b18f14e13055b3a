"""The method: choose the images whose labels are worth most, by optimising prototypes in a feature space.

from data_selection.activeft import select
chosen = select(features, budget=500).indices
"""

from data_selection.activeft.selection import Selection, select

__all__ = ["Selection", "select"]
