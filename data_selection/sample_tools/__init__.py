"""The commands of stage 2, and what they share."""
