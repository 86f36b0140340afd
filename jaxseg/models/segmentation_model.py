"""The interface between the models and the rest of the package: build, initialize, apply."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import core, struct
from flax import linen as nn
from jaxtyping import Array, Float

from jaxseg.models import displacement, kernels
from jaxseg.models.backbones import BACKBONES
from jaxseg.models.frozen import frozen_parts
from jaxseg.models.heads import HEADS
from jaxseg.models.heads.mask2former_head import MaskPredictions
from jaxseg.ops.padding import Sizes
from pallas_kernels import KernelChoice

Variables = Mapping[str, Any]

ANY_HW = (64, 64)  # image size for results that do not depend on it


@struct.dataclass
class ModelOutput:
    """The outputs of a `SegmentationModel`.

    Attributes:
      logits: the semantic logits at the head's stride. For a Mask2FormerHead, the result of
        `MaskPredictions.semantic`.
      aux_logits: the logits of the auxiliary head. None outside training or without such a head.
      masks: the predictions of a Mask2FormerHead, from which `logits` are computed. None for other
        heads.
      displacement: the range of the offsets of deformable layers, in pixels, averaged over the
        layers. None outside training, and for models without deformable layers.
    """

    logits: Float[Array, "b h w k"]
    aux_logits: Float[Array, "b p q j"] | None = None
    masks: MaskPredictions | None = None
    displacement: Float[Array, ""] | None = None


class SegmentationModel(nn.Module):
    """A segmentation model: a backbone, a decode head and an optional auxiliary head."""

    backbone: nn.Module
    decode_head: nn.Module
    auxiliary_head: nn.Module | None = None

    @property
    def takes_padding(self) -> bool:
        """Whether images of several sizes may be padded to one shape, as `apply_model` says."""
        return self.backbone.takes_padding and self.decode_head.takes_padding

    def __call__(
        self, images: Float[Array, "b h w 3"], train: bool, image_sizes: Sizes | None = None
    ) -> ModelOutput:
        sizes = () if image_sizes is None else (image_sizes,)
        features = self.backbone(images, train, *sizes)
        predicted = self.decode_head(features, train, *sizes)
        if isinstance(predicted, MaskPredictions):
            scores = self.decode_head.semantic(predicted, images.shape[1:3])
            return ModelOutput(scores, masks=predicted)
        if not train or self.auxiliary_head is None:
            return ModelOutput(predicted)
        return ModelOutput(predicted, self.auxiliary_head(features, train))


def build_model(
    config: Mapping[str, Any], deterministic: bool = False, portable: bool = False
) -> SegmentationModel:
    """Builds the module that `config.model` describes.

    Args:
      config: the settings of the model. `dtype` is the type of the computation; "auto" is bfloat16
        on accelerators and float32 otherwise. `kernels` selects the kernels ("auto", "xla", "gpu"
        or "tpu"); the environment variable JAXSEG_KERNELS overrides it. `backbone`, `decode_head`
        and `auxiliary_head` (or None) name their `kind`; their other keys are the arguments of its
        class.
      deterministic: whether gradients must have the same bits in every run on a GPU, too.
      portable: whether the model must run everywhere: without kernels, whatever the setting is.

    Raises:
      ConfigError: if the kernel setting is unknown.
      ValueError: if the kind of a part is unknown.
    """
    choice = KernelChoice("xla") if portable else kernels.kernel_choice(config, deterministic)
    dtype = jnp.dtype(computation_dtype(config))

    def make(part, kinds):
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in part.items()}
        kind = options.pop("kind")
        if kind not in kinds:
            raise ValueError(f"model: unknown kind {kind!r}; must be one of {', '.join(kinds)}")
        if "kernels" in kinds[kind].__dataclass_fields__:
            options["kernels"] = choice
        return kinds[kind](**options, dtype=dtype)

    auxiliary = config["auxiliary_head"]
    return SegmentationModel(
        backbone=make(config["backbone"], BACKBONES),
        decode_head=make(config["decode_head"], HEADS),
        auxiliary_head=make(auxiliary, HEADS) if auxiliary else None,
    )


def computation_dtype(config: Mapping[str, Any]) -> str:
    """Returns the type that a model computes in.

    Args:
      config: the settings of the model, as in `build_model`.
    """
    if config["dtype"] != "auto":
        return config["dtype"]
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def variable_shapes(model: SegmentationModel) -> Variables:
    """Returns the shapes and dtypes of a model's variables without computing anything."""
    return jax.eval_shape(lambda: init_variables(model, jax.random.key(0), ANY_HW))


def init_variables(model: SegmentationModel, rng: jax.Array, image_hw: Sequence[int]) -> Variables:
    """Creates the variables {"params", "batch_stats"}, initialized as in the reference.

    Args:
      model: the model.
      rng: the random key for the parameters.
      image_hw: height and width in pixels of the image that the model is traced with.
    """
    images = jnp.zeros((1, *image_hw, 3))
    variables = model.init({"params": rng, "dropout": rng}, images, train=True)
    return {"batch_stats": {}} | core.unfreeze(variables)


def apply_model(
    model: SegmentationModel,
    variables: Variables,
    images: Float[Array, "b h w 3"],
    *,
    train: bool = False,
    dropout_rng: jax.Array | None = None,
    image_sizes: Sizes | None = None,
    frozen: Sequence[str] = (),
) -> tuple[ModelOutput, Variables]:
    """Runs the model and returns its output and its batch statistics.

    Args:
      model: the model.
      variables: its parameters and batch statistics.
      images: a batch of images.
      train: whether to run in training mode, which updates the batch statistics.
      dropout_rng: the random key for dropout and drop path, used only in training.
      image_sizes: the sizes of the images without padding, for a model that `takes_padding` and
        not in training. Images are padded with zeros at the bottom and on the right. Their logits
        are those of each image alone, followed by meaningless ones for the padding.
      frozen: patterns of the parts that run as in evaluation, also in training (`frozen_parts`).
    """
    if not train:
        output = model.apply(variables, images, train=False, image_sizes=image_sizes)
        return output, variables["batch_stats"]
    rngs = {"dropout": dropout_rng} if dropout_rng is not None else None
    kept = ["batch_stats", displacement.COLLECTION]
    with frozen_parts(frozen):
        output, updated = model.apply(variables, images, train=True, rngs=rngs, mutable=kept)
    output = output.replace(displacement=displacement.mean_range(updated))
    return output, updated["batch_stats"]
