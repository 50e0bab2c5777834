"""Classify images: the five most probable classes each, and a picture.

python examples/predict.py runs/flowers-torchvision photo.jpg holiday/
python examples/predict.py runs/flowers-torchvision holiday/ --sort sorted   copies: sorted/CLASS

The same as the command `tinyalex predict`; its code is in tinyalex/cli/predict.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.predict import main

    sys.exit(main())
