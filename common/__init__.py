"""Code shared by the stages: checkpoints, networks, images, processes, training, files, and one-line errors.

Scripts import it before torch, which sets up its threads when it is loaded.
"""

from common.cpus import share_processors

VERSION = "1.3"  # change it when the same command gives other numbers: the tables then rerun it

share_processors()
