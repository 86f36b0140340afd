"""Counts FLOPs by the rules of the published tables, so that the results match their figures.

The rules follow mmcv's counter and the InternImage repository's own term for DCNv3. A convolution
or linear layer counts its multiply-accumulates. In addition:

- the bias of a convolution counts 1 per output (that of a linear layer does not count)
- layer norm and group norm count 2 per element
- ReLU counts 1 per element
- a pooling in a head counts 1 per input
- the sampling of K points by DCNv3 counts 5·K·H·W·C

Not counted are:

- batch norm, GELU, softmax, resizing, residuals and layer scale
- the projection of InternImage-H's center feature scale
- in Mask2Former, the sampling in the pixel decoder, and attention except for its FFN

No figures are published for ViT-Adapter. Its attention counts another 2·N²·C for N tokens (queries
with keys, weights with values). Its deformable attention counts another 5 for every sampled value.
"""

import collections
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxseg.models import deformable_attention, layers
from jaxseg.models.backbones import beit, dinov3, vit
from jaxseg.models.backbones.internimage import DCNv3
from jaxseg.models.group_linear import FromGroups, ToGroups
from jaxseg.models.heads import mask2former_layers, pixel_decoder
from jaxseg.models.heads.mask2former_head import Mask2FormerHead
from jaxseg.models.heads.uper_head import UPerHead
from jaxseg.models.segmentation_model import SegmentationModel


def count_module(module: nn.Module, inputs: tuple, output) -> int:
    """Returns the FLOPs of a module itself, without those of its submodules.

    Args:
      module: the module.
      inputs: the positional arguments of its call.
      output: the result of its call.
    """
    # The order of the cases matters: a special case comes before the general case of its class.
    match module:
        case layers.Linear(parent=mask2former_layers.MultiheadAttention()):
            return 0
        case ToGroups(name="center_feature_scale_proj"):
            return 0
        case ToGroups():  # padded groups, which only the kernel needs, do not count
            return inputs[0].size * module.groups * module.features
        case FromGroups():
            return output.size * inputs[0].shape[-1] // module.order.padded * module.groups
        case deformable_attention.MSDeformAttn(parent=pixel_decoder.EncoderLayer()):
            return 0
        case layers.Linear() | dinov3.QKV():
            return output.size * inputs[0].shape[-1]
        case layers.Conv():
            taps = module.kernel_size**2 * inputs[0].shape[-1]
            return output.size * (taps + module.use_bias)
        case layers.DepthwiseConv():
            return output.size * (module.kernel_size**2 + 1)
        case layers.ConcatConv():
            return output.size * module.kernel_size**2 * sum(x.shape[-1] for x in inputs[0])
        case layers.Classifier():
            return output.size * (inputs[0].shape[-1] + 1)
        case layers.LayerNorm() | nn.GroupNorm():
            return 2 * output.size
        case layers.ConvBNReLU():
            return output.size
        case DCNv3():
            return 5 * module.kernel_size**2 * output.size
        case vit.PatchConv():
            return output.size * (3 * module.patch**2 + 1)
        case vit.ViTAttention(window=int()):
            x, hw = inputs
            windows = math.prod(-(side // -module.window) for side in hw)
            return 2 * windows * module.window**4 * x.shape[0] * x.shape[-1]
        case vit.ViTAttention() | beit.BEiTAttention() | dinov3.DINOv3Attention():
            x, _ = inputs
            return 2 * x.size * x.shape[1]
        case deformable_attention.MSDeformAttn():
            query, _, _, pyramid = inputs
            values = len(pyramid) * module.num_points * int(query.shape[-1] * module.ratio)
            return 5 * values * math.prod(query.shape[:2])
        case layers.Upsample():
            return output.size * (inputs[0].shape[-1] + 1)
        case mask2former_layers.FFN():
            return module.hidden_dim * math.prod(output.shape[:-1])
        case pixel_decoder.MSDeformAttnPixelDecoder():
            return output[0].size
        case Mask2FormerHead():
            return 2 * module.channels * math.prod(output.class_logits.shape[:-1])
        case UPerHead():
            return len(module.pool_scales) * math.prod(inputs[0][-1].shape)
    return 0


def count_flops(model: SegmentationModel, image_hw: Sequence[int]) -> dict[tuple[str, ...], int]:
    """Counts the FLOPs of every module for one image in evaluation.

    Only shapes are evaluated; nothing is computed.

    Args:
      model: the model.
      image_hw: height and width of the image, in pixels.

    Returns:
      The FLOPs by the path of the module in the model. Modules without FLOPs are left out.
    """
    counts = collections.Counter()

    def record(call, args, kwargs, context):
        output = call(*args, **kwargs)
        if context.method_name == "__call__":
            counts[context.module.path] += count_module(context.module, args, output)
        return output

    image = jax.ShapeDtypeStruct((1, *image_hw, 3), jnp.float32)
    with nn.intercept_methods(record):
        # Initialization runs every module once, just as a prediction does.
        jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    return {path: flops for path, flops in counts.items() if flops}
