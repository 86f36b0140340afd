"""The one seam between the models and everything else: build, init, apply."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models import displacement, kernels
from jaxseg.models.backbones.beit import BEiT, BEiTAdapter
from jaxseg.models.backbones.internimage import InternImage
from jaxseg.models.backbones.uniperceiver import UniPerceiverAdapter
from jaxseg.models.backbones.vit_adapter import ViTAdapter
from jaxseg.models.heads.mask2former_head import Mask2FormerHead, MaskPredictions
from jaxseg.models.heads.segformer_head import SegformerHead
from jaxseg.models.heads.uper_head import FCNHead, UPerHead

BACKBONES = {
    "internimage": InternImage,
    "vit_adapter": ViTAdapter,
    "beit_adapter": BEiTAdapter,
    "uniperceiver_adapter": UniPerceiverAdapter,
    "beit": BEiT,
}
HEADS = {
    "upernet": UPerHead,
    "segformer": SegformerHead,
    "mask2former": Mask2FormerHead,
    "fcn": FCNHead,
}

Variables = Mapping[str, Any]

ANY_HW = (64, 64)  # for what does not depend on the size of the images


@flax.struct.dataclass
class ModelOutput:
    """What a segmentor returns.

    Attributes:
      logits: semantic scores at the head's stride.
      aux_logits: scores of the auxiliary head; None outside training or without such a head.
      masks: what a Mask2FormerHead predicts, of which `logits` are made; None for other heads.
      displacement: in training, how far the offsets of deformable layers range, in pixels; the mean
        over the layers, and None where there are none.
    """

    logits: Float[Array, "b h w k"]
    aux_logits: Float[Array, "b p q k"] | None = None
    masks: MaskPredictions | None = None
    displacement: Float[Array, ""] | None = None


class SegmentationModel(nn.Module):
    """A backbone and its heads."""

    backbone: nn.Module
    decode_head: nn.Module
    auxiliary_head: nn.Module | None = None

    def __call__(self, images: Float[Array, "b h w 3"], train: bool) -> ModelOutput:
        features = self.backbone(images, train)
        predicted = self.decode_head(features, train)
        if isinstance(predicted, MaskPredictions):
            return ModelOutput(predicted.semantic(), masks=predicted)
        if not train or self.auxiliary_head is None:
            return ModelOutput(predicted)
        return ModelOutput(predicted, self.auxiliary_head(features, train))


def build_model(config: Mapping[str, Any], deterministic: bool = False) -> SegmentationModel:
    """The module that `config.model` describes.

    `config` holds `dtype` of the computation ("auto": bfloat16 on accelerators, else float32),
    `kernels` (of deformable sampling: "auto", "xla", "gpu" or "tpu"; the environment variable
    JAXSEG_KERNELS wins), `backbone`, `decode_head` and `auxiliary_head` (or None); each part names
    its `kind`, the rest are the arguments of its class.

    deterministic: gradients have the same bits in every run on a GPU, too.

    Raises:
      ConfigError: for kernels that do not exist.
      ValueError: for an unknown kind.
    """
    choice = kernels.kernel_choice(config, deterministic)
    accelerated = jax.default_backend() != "cpu"
    automatic = "bfloat16" if accelerated else "float32"
    dtype = jnp.dtype(automatic if config["dtype"] == "auto" else config["dtype"])

    def make(part, kinds):
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in part.items()}
        kind = options.pop("kind")
        if kind not in kinds:
            raise ValueError(f"model: unknown kind {kind!r}; there are {', '.join(kinds)}")
        if "kernels" in kinds[kind].__dataclass_fields__:  # parts with deformable layers
            options["kernels"] = choice
        return kinds[kind](**options, dtype=dtype)

    auxiliary = config["auxiliary_head"]
    return SegmentationModel(
        backbone=make(config["backbone"], BACKBONES),
        decode_head=make(config["decode_head"], HEADS),
        auxiliary_head=make(auxiliary, HEADS) if auxiliary else None,
    )


def variable_shapes(model: SegmentationModel) -> Variables:
    """Shapes and types of the variables of a model; nothing is computed."""
    return jax.eval_shape(lambda: init_variables(model, jax.random.key(0), ANY_HW))


def init_variables(model: SegmentationModel, rng: jax.Array, image_hw: Sequence[int]) -> Variables:
    """Fresh variables {"params", "batch_stats"}, initialized as the reference does."""
    images = jnp.zeros((1, *image_hw, 3))
    variables = model.init({"params": rng, "dropout": rng}, images, train=True)
    return {"batch_stats": {}} | flax.core.unfreeze(variables)


def apply_model(
    model: SegmentationModel,
    variables: Variables,
    images: Float[Array, "b h w 3"],
    *,
    train: bool = False,
    dropout_rng: jax.Array | None = None,
) -> tuple[ModelOutput, Variables]:
    """Runs the model; returns its output and the batch statistics (updated in training)."""
    if not train:
        return model.apply(variables, images, train=False), variables["batch_stats"]
    rngs = {"dropout": dropout_rng} if dropout_rng is not None else None
    kept = ["batch_stats", displacement.COLLECTION]
    output, updated = model.apply(variables, images, train=True, rngs=rngs, mutable=kept)
    output = output.replace(displacement=displacement.mean_range(updated))
    return output, updated["batch_stats"]
