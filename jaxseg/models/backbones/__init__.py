"""Lists the backbones by their kind, as `config.model.backbone.kind` names it."""

from jaxseg.models.backbones.beit import BEiT, BEiTAdapter
from jaxseg.models.backbones.dinov2 import DINOv2
from jaxseg.models.backbones.dinov3 import DINOv3
from jaxseg.models.backbones.dinov3_adapter import DINOv3Adapter
from jaxseg.models.backbones.internimage import InternImage
from jaxseg.models.backbones.uniperceiver import UniPerceiverAdapter
from jaxseg.models.backbones.vit_adapter import ViTAdapter

BACKBONES = {
    "internimage": InternImage,
    "vit_adapter": ViTAdapter,
    "beit_adapter": BEiTAdapter,
    "uniperceiver_adapter": UniPerceiverAdapter,
    "beit": BEiT,
    "dinov2": DINOv2,
    "dinov3": DINOv3,
    "dinov3_adapter": DINOv3Adapter,
}
