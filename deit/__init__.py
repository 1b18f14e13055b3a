"""Finetuning a classifier on the chosen images: finetuning.py is a run, recipe_options.py has every option."""
