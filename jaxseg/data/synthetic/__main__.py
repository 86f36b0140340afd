"""Writes painted street scenes to train on: jaxseg synth --output DIR."""

import argparse
from collections.abc import Sequence

from jaxseg.data.synthetic.writer import write_street_scenes
from jaxseg.errors import exit_with_message


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(prog="jaxseg synth", description=__doc__)
    parser.add_argument("--output", required=True, help="folder to write; created if missing")
    parser.add_argument("--train", type=int, default=300, help="training scenes")
    parser.add_argument("--val", type=int, default=60, help="validation scenes")
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    with exit_with_message("jaxseg synth"):
        write_street_scenes(
            args.output,
            train=args.train,
            val=args.val,
            image_hw=(args.height, args.width),
            seed=args.seed,
        )
    print(f"{args.train} training and {args.val} validation scenes in {args.output}")


if __name__ == "__main__":
    main()
