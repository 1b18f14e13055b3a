"""Finetune a pretrained ViT for semantic segmentation on the chosen images."""
