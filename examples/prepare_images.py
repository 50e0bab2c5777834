"""Turn a folder of images into a clean, verifiable one for training.

python examples/prepare_images.py photos clean     photos/cat/1.png, ... to clean/cat/1.png.jpg, ...
python examples/prepare_images.py --verify clean   has a file changed, or gone, since then?

The same as the command `tinyalex prepare`; its code is in tinyalex/cli/prepare.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.prepare import main

    sys.exit(main())
