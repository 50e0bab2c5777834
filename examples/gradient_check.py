"""Check every gradient of tinyalex against finite differences, and print a table.

python examples/gradient_check.py
python examples/gradient_check.py --backend reference   the plain NumPy kernels

The same as the command `tinyalex gradcheck`; its code is in tinyalex/cli/gradcheck.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.gradcheck import main

    sys.exit(main())
