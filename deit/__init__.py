"""Finetuning a classifier on the chosen images: main.py runs, recipe_options.py has every option."""
