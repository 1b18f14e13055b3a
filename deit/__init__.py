"""Finetune a classifier on the chosen images: finetuning.py holds a run, recipe_options.py every option."""
