"""The method: choose the images whose labels are worth most, by optimising prototypes in a feature space.

reference.py is the method as the paper states it; read it first, and change it first. The other files do the same, fast
and in bounded memory: objective.py (loss and gradient), assignment.py (the nearest prototypes), prototypes.py (from
images to prototypes and back), selection.py (settings and the loop).

    from data_selection.activeft import select
    chosen = select(features, budget=500).indices
"""

from data_selection.activeft.selection import Selection, select

__all__ = ["Selection", "select"]
