"""What the stages share: checkpoints, networks, images, processes, training, files, and errors of one line.

Scripts import it before torch, whose threads are set up when it is loaded.
"""

from common.cpus import share_processors

VERSION = "1.2"  # another one where the same command gives other numbers: the tables then run it again

share_processors()
