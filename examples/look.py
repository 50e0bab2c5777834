"""Look at a trained network: one command for each picture.

python examples/look.py RUN filters                        what the first layer looks for
python examples/look.py RUN answers photos/                images with the five best answers
python examples/look.py RUN neighbours a.jpg --among DIR   images that the network finds alike
python examples/look.py RUN features a.jpg                 what each layer makes of an image
python examples/look.py RUN curves                         loss and accuracy over the epochs

The same as the command `tinyalex look`; its code is in tinyalex/cli/look.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.look import main

    sys.exit(main())
