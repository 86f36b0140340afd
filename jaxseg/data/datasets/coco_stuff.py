"""Describes COCO-Stuff: 171 classes of things and stuff, with 164k images and with 10k.

Source: Caesar et al., arXiv:1612.03716.
"""

import dataclasses

from jaxseg.data.datasets.description import (
    IGNORE,
    Dataset,
    LabelFormat,
    colors,
    label_table,
    names,
)

CLASSES = names("""
        person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
        hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear,
        zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard, sports
        ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, wine
        glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot
        dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
        mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book,
        clock, vase, scissors, teddy bear, hair drier, toothbrush, banner, blanket, branch, bridge,
        building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
        clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence,
        floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other,
        fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
        mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other,
        plastic, platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad,
        sand, sea, shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw,
        structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick,
        wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other,
        waterdrops, window-blind, window-other, wood
""")
PALETTE = colors("""
        00c040 00c040 004060 80c0c0 004040 00c0e0 00c0c0 80c040 00c060 80c040 8020c0 0000e0 000040
        00a0c0 800060 8000c0 0020c0 8080e0 0000c0 80a0c0 808000 800020 802000 800080 408020 00a000
        000000 c080a0 002000 008080 4080a0 80a000 008000 c08020 806080 000080 400020 00e080 800000
        c000a0 006080 808080 4000a0 80e080 808040 c00020 806000 8000c0 008020 40e000 000040 8080a0
        406000 0080c0 0080a0 c0e000 008040 808020 c02080 0040c0 000020 40a080 804040 8000a0 402080
        80c0c0 0000a0 c0a080 80c000 800060 c02000 804080 408060 40a000 004000 c080e0 402000 00c080
        4080e0 c0a000 00c000 c08060 c06080 004080 400060 40e080 804000 c000e0 406080 80c080 4000e0
        c0e080 80c040 c00060 c06000 8040c0 008060 00e000 404040 8080e0 006000 40c0c0 0080e0 80e000
        40c040 808060 802080 4000c0 004060 00a080 c00040 8040e0 002080 c080c0 0040e0 80a080 c08000
        804020 802040 c00080 40c020 00a040 400000 c0c0a0 002040 408080 40c0a0 80a040 408000 c0c020
        8060c0 400080 404020 00e0c0 c00000 c040a0 0060c0 c08080 4040a0 80e0c0 c08040 c04020 806040
        c000c0 00c020 40e040 400040 80c0a0 406040 4080c0 00c0a0 c0e040 408040 80c020 c020c0 4040c0
        004020 40a0c0 c04040 8040a0 4020c0 c0c0c0 0040a0 c0a0c0 c0c000 804060 c02040 c04080 40c060
        40a040 404000
""")
# The raw ids are COCO's category ids minus one. The ids in `UNUSED` belong to no class.
UNUSED = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
RAW_IDS = tuple(raw for raw in range(182) if raw not in UNUSED)

COCO_STUFF_164K = Dataset(
    name="coco_stuff164k",
    classes=CLASSES,
    palette=PALETTE,
    images="images/{split}",
    image_suffix=".jpg",
    labels=("annotations/{split}",),
    label_formats=(
        LabelFormat("_labelTrainIds.png", label_table({k: k for k in range(171)})),
        LabelFormat(".png", label_table({raw: k for k, raw in enumerate(RAW_IDS)})),
    ),
)

COCO_STUFF_10K = dataclasses.replace(
    COCO_STUFF_164K,
    name="coco_stuff10k",
    # In files of this suffix, 0 marks unlabeled pixels here, but is a class in COCO-Stuff 164k.
    label_formats=(
        LabelFormat(
            "_labelTrainIds.png", label_table({0: IGNORE} | {k + 1: k for k in range(171)})
        ),
    ),
    label_origin="The release has .mat files; MMSegmentation's coco_stuff10k.py makes these labels "
    "from them and sorts the images into the splits.",
)
