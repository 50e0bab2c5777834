"""Measure how much a network's features tell of other images.

python examples/probe.py RUN                                  of the run's own images
python examples/probe.py RUN --data photos --shots 5,20,all   of others
python examples/probe.py alexnet.pth --data photos --layer pool5

The same as the command `tinyalex probe`; its code is in tinyalex/cli/probe.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.probe import main

    sys.exit(main())
