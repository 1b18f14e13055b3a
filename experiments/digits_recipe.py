"""What the demo and the comparison have in common: the ViT, and how it is finetuned on a handful of digits."""

DIGITS_MODEL = "vit_tiny_patch16_224"
DIGITS_MODEL_KWARGS = "img_size=32 patch_size=8 embed_dim=96 depth=4 num_heads=3"
DIGITS_FINETUNING = "--total-batch-size 32 --clip-grad 2.0 --num_workers 0"
