"""What both stages need: checkpoints, networks, image folders, processes, files, and errors of one line."""
