"""The encoder and the decoders of segmentation."""

import pytest
import torch
import torch.nn.functional as F
from conftest import TINY_VIT, tiny_vit

from common.errors import InputError
from common.pretrained import load_pretrained
from segmenter.models import BatchNormLinear, LinearDecoder, MaskTransformer, PixelClassifier, build_encoder

D = TINY_VIT["embed_dim"]
TINY = {key: value for key, value in TINY_VIT.items() if key != "img_size"}


def tiny_encoder(crop_size: int = 32, **kwargs) -> torch.nn.Module:
    encoder = build_encoder("vit_tiny_patch16_224", {**TINY, **kwargs}, crop_size)
    for weight in encoder.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return encoder.eval()


@pytest.mark.parametrize("decoder", [LinearDecoder(D, 5), MaskTransformer(D, 5), BatchNormLinear(D, 5)])
@pytest.mark.parametrize("size", [(32, 32), (40, 24), (37, 50), (5, 5)])
def test_every_pixel_of_an_image_of_any_size_gets_logits(decoder, size):
    model = PixelClassifier(tiny_encoder(), decoder).eval()
    assert model(torch.randn(2, 3, *size)).shape == (2, 5, *size)


def test_linear_decoder_is_one_layer_on_the_patch_tokens_and_bilinear_interpolation():
    encoder, decoder = tiny_encoder(), LinearDecoder(D, 5)
    images = torch.randn(2, 3, 32, 24)
    tokens = encoder.forward_features(images)[:, 1:]
    expected = (tokens @ decoder.weight.T + decoder.bias).transpose(1, 2).reshape(2, 5, 4, 3)
    expected = F.interpolate(expected, scale_factor=8, mode="bilinear")
    torch.testing.assert_close(PixelClassifier(encoder, decoder).eval()(images), expected)


def test_padding_is_zeros_on_the_right_and_at_the_bottom():
    model = PixelClassifier(tiny_encoder(), LinearDecoder(D, 5)).eval()
    images = torch.randn(1, 3, 30, 27)
    padded = torch.zeros(1, 3, 32, 32)
    padded[..., :30, :27] = images
    torch.testing.assert_close(model(images), model(padded)[..., :30, :27])


def test_class_and_register_tokens_are_dropped():
    encoder = tiny_encoder(reg_tokens=3)
    seen = []
    decoder = LinearDecoder(D, 5)
    decoder.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    images = torch.randn(1, 3, 32, 32)
    PixelClassifier(encoder, decoder).eval()(images)
    torch.testing.assert_close(seen[0], encoder.forward_features(images)[:, 4:])


def test_position_embeddings_of_the_checkpoint_are_resampled_to_the_crop():
    weights = tiny_vit().state_dict()  # 4 x 4 patches
    encoder = build_encoder("vit_tiny_patch16_224", TINY, 60)  # 8 x 8
    assert load_pretrained(encoder, weights, "tiny") == []
    grid = weights["pos_embed"][:, 1:].reshape(1, 4, 4, D).permute(0, 3, 1, 2)
    expected = F.interpolate(grid, size=(8, 8), mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, 64, D)
    torch.testing.assert_close(encoder.pos_embed[:, 1:], expected)
    torch.testing.assert_close(encoder.pos_embed[:, :1], weights["pos_embed"][:, :1])


def test_mask_transformer_is_cosines_of_patches_and_classes_normalised_over_the_classes():
    torch.manual_seed(0)
    decoder = MaskTransformer(D, 5).eval()
    tokens = torch.randn(2, 7, D)
    joined = torch.cat([decoder.proj_dec(tokens), decoder.class_tokens.expand(2, 5, D)], dim=1)
    for block in decoder.blocks:
        joined = block(joined)
    joined = decoder.norm(joined)
    patches = joined[:, :7] @ decoder.proj_patch.weight.T
    classes = joined[:, 7:] @ decoder.proj_classes.weight.T
    cosines = F.cosine_similarity(patches[:, :, None], classes[:, None], dim=-1)
    centred = cosines - cosines.mean(dim=-1, keepdim=True)
    expected = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(decoder(tokens), expected, rtol=1e-4, atol=1e-5)


def test_mask_transformer_has_segmenters_size_and_start():
    decoder = MaskTransformer(384, 150)
    assert len(decoder.blocks) == 2
    assert decoder.blocks[0].attn.num_heads == 6 and decoder.blocks[0].mlp.fc1.out_features == 4 * 384
    assert decoder.blocks[0].attn.proj_drop.p == decoder.blocks[0].mlp.drop1.p == 0.1
    assert decoder.class_tokens.std().item() == pytest.approx(0.02, rel=0.05)
    assert decoder.proj_patch.weight.std().item() == pytest.approx(384**-0.5, rel=0.05)
    assert decoder.proj_patch.bias is None and decoder.proj_classes.bias is None


def test_a_frozen_encoder_stays_in_evaluation_mode_and_has_no_gradient():
    model = PixelClassifier(tiny_encoder(), BatchNormLinear(D, 5), frozen=True).train()
    assert not model.encoder.training and model.decoder.training
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(weight.grad is None for weight in model.encoder.parameters())
    assert all(weight.grad is not None for weight in model.decoder.parameters())


def test_batch_norm_normalises_over_all_patches_of_the_batch():
    decoder = BatchNormLinear(D, 5).train()
    tokens = 3 + 2 * torch.randn(4, 9, D)
    flat = tokens.reshape(-1, D)
    normalised = (flat - flat.mean(dim=0)) / (flat.var(dim=0, unbiased=False) + 1e-5).sqrt()
    expected = (normalised @ decoder.linear.weight.T + decoder.linear.bias).reshape(4, 9, 5)
    torch.testing.assert_close(decoder(tokens), expected)


@pytest.mark.parametrize("name", ["resnet18", "swin_tiny_patch4_window7_224"])
def test_a_network_that_is_no_vit_is_refused(name):
    with pytest.raises(InputError, match=f"--model {name} is not a ViT"):
        build_encoder(name, {}, 64)
