"""Measure a trained network: its accuracy per class, and its confusions.

python examples/evaluate.py runs/flowers-torchvision               on the run's held-out images
python examples/evaluate.py best.safetensors --data more-flowers   on other images
python examples/evaluate.py RUN --data flowers --held-out          on the run's, which have moved

The same as the command `tinyalex evaluate`; its code is in tinyalex/cli/evaluate.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.evaluate import main

    sys.exit(main())
