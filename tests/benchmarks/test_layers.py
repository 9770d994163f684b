"""Layers, attention and a block of DeiT-T: forward and backward together, two images."""

import pytest
import torch

LAYERS = {
    "linear": ("statsq", lambda model: model.blocks[0].mlp.fc1),
    "attention": ("statsq", lambda model: model.blocks[0].attn),
    "attention with QKR": ("statsq_qkr", lambda model: model.blocks[0].attn),
    "block": ("statsq", lambda model: model.blocks[0]),
    "block with QKR": ("statsq_qkr", lambda model: model.blocks[0]),
}


def forward_backward(layer, x):
    """The gradient of x and of all parameters."""
    wanted = [x, *layer.parameters()]
    return torch.autograd.grad(layer(x).sum(), wanted, allow_unused=True)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name, piece, tokens, side_by_side):
    layer, x = piece(*LAYERS[name]), tokens()
    gradients = side_by_side(f"{name}, forward and backward", lambda: forward_backward(layer, x))
    assert gradients[0].shape == x.shape


def test_patch_embedding(piece, side_by_side):
    layer = piece("statsq", lambda model: model.patch_embed.proj)
    images = torch.randn(2, 3, 224, 224, requires_grad=True)
    gradients = side_by_side(
        "patch embedding, forward and backward", lambda: forward_backward(layer, images)
    )
    assert gradients[0].shape == images.shape
