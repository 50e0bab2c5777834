"""Plan a training on several computers or GPUs, before there are any.

python examples/plan_training.py --measure --link 1                           like this, at 1 Gbit/s
python examples/plan_training.py --rate 40000 --link 400 --latency 2 --batch-per-rank 128   on GPUs
python examples/plan_training.py --variant source2012 --rate 100              the towers of 2012

The same as the command `tinyalex plan`; its code is in tinyalex/cli/plan.py.
"""

import sys

if __name__ == "__main__":
    import ctrl_c  # noqa: F401  first: the rest takes a second to import

    from tinyalex.cli.plan import main

    sys.exit(main())
