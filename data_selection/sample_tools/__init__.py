"""The commands of stage 2, and the code they share."""
