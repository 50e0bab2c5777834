"""Write a page on a run, one HTML file without requests.

python examples/report.py RUN                   report.html in the folder of the run
python examples/report.py RUN --out page.html   the same elsewhere
python examples/report.py RUN --data DIR        where the images of the run have moved

The same as the command `tinyalex report`; its code is in tinyalex/cli/report.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.report import main

    sys.exit(main())
