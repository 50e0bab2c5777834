"""Train an AlexNet on drawn images or on your own photographs.

python examples/train_alexnet.py                  the embedded data set, in a few minutes
python examples/train_alexnet.py --data photos    photos/cat/1.jpg, photos/dog/2.png, ...
python examples/train_alexnet.py --resume RUN     resume a run where it was interrupted
python examples/train_alexnet.py --help           all options

The same as the command `tinyalex train`; its code is in tinyalex/cli/train.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.train import main

    sys.exit(main())
