"""Lists the heads by their kind, as `config.model.decode_head.kind` names it."""

from jaxseg.models.heads.linear_head import LinearHead
from jaxseg.models.heads.mask2former_head import Mask2FormerHead
from jaxseg.models.heads.segformer_head import SegformerHead
from jaxseg.models.heads.uper_head import FCNHead, UPerHead

HEADS = {
    "upernet": UPerHead,
    "segformer": SegformerHead,
    "mask2former": Mask2FormerHead,
    "fcn": FCNHead,
    "linear": LinearHead,
}
